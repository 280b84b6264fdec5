package networking

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// NetworkPolicy returns the row of networkpolicies. The nodes enforce them
// (services/node/internal/policy).
func NetworkPolicy() *resource.Kind {
	k := row.Namespaced[networkingv1.NetworkPolicy, networkingv1.NetworkPolicyList](
		networkingv1.SchemeGroupVersion, "networkpolicies", "networkpolicies")
	k.ShortNames = []string{"netpol"}
	k.Columns = []metav1.TableColumnDefinition{
		column.Text("Pod-Selector", column.Doc(networkingv1.NetworkPolicySpec{}, "podSelector")), column.AgeColumn(),
	}
	k.Cells = func(o resource.Object) []any {
		p := o.(*networkingv1.NetworkPolicy)
		return []any{metav1.FormatLabelSelector(&p.Spec.PodSelector), column.Age(p.CreationTimestamp)}
	}
	k.Rules = resource.Typed[*networkingv1.NetworkPolicy]{
		Default:  defaultPolicy,
		Validate: func(p *networkingv1.NetworkPolicy) field.ErrorList { return validatePolicy(p, nil) },
		ValidateUpdate: func(p, old *networkingv1.NetworkPolicy) field.ErrorList {
			return validatePolicy(p, old)
		},
		Warnings: func(p, _ *networkingv1.NetworkPolicy) []string { return policyWarnings(p) },
	}.Rules()
	return k
}

func defaultPolicy(p *networkingv1.NetworkPolicy) {
	for i := range p.Spec.Ingress {
		defaultPorts(p.Spec.Ingress[i].Ports)
	}
	for i := range p.Spec.Egress {
		defaultPorts(p.Spec.Egress[i].Ports)
	}
	if len(p.Spec.PolicyTypes) > 0 {
		return
	}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	if len(p.Spec.Egress) > 0 {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
	}
}

func defaultPorts(ports []networkingv1.NetworkPolicyPort) {
	for i := range ports {
		if ports[i].Protocol == nil {
			tcp := corev1.ProtocolTCP
			ports[i].Protocol = &tcp
		}
	}
}

// validatePolicy checks a policy. Blocks of addresses that the old state has are valid.
func validatePolicy(p, old *networkingv1.NetworkPolicy) field.ErrorList {
	v := policyCheck{}
	loose := false
	if old != nil {
		eachBlock(old, func(_ *field.Path, b *networkingv1.IPBlock) { v.known = append(append(v.known, b.CIDR), b.Except...) })
		loose = len(validation.ValidateLabelSelector(&old.Spec.PodSelector, validation.LabelSelectorValidationOptions{}, nil)) > 0
	}
	v.selectors = validation.LabelSelectorValidationOptions{AllowInvalidLabelValueInSelector: loose}
	spec, path := &p.Spec, field.NewPath("spec")
	v.selector(path.Child("podSelector"), &spec.PodSelector)
	for i := range spec.Ingress {
		at := path.Child("ingress").Index(i)
		v.ports(at.Child("ports"), spec.Ingress[i].Ports)
		v.peers(at.Child("from"), spec.Ingress[i].From)
	}
	for i := range spec.Egress {
		at := path.Child("egress").Index(i)
		v.ports(at.Child("ports"), spec.Egress[i].Ports)
		v.peers(at.Child("to"), spec.Egress[i].To)
	}
	at := path.Child("policyTypes")
	if len(spec.PolicyTypes) > 2 {
		v.Invalid(at, &spec.PolicyTypes, "may not specify more than two policyTypes")
		return v.List
	}
	for i, t := range spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			v.List = append(v.List, field.NotSupported(at.Index(i), t, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}))
		}
	}
	return v.List
}

// policyCheck collects the errors of a policy.
type policyCheck struct {
	check.Errors
	selectors validation.LabelSelectorValidationOptions
	// known are the blocks of addresses that are not checked again.
	known []string
}

func (v *policyCheck) selector(p *field.Path, s *metav1.LabelSelector) {
	v.Append(validation.ValidateLabelSelector(s, v.selectors, p))
}

func (v *policyCheck) ports(path *field.Path, ports []networkingv1.NetworkPolicyPort) {
	protocols := []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	for i := range ports {
		port, p := &ports[i], path.Index(i)
		if port.Protocol != nil {
			check.Supported(&v.Errors, p, "protocol", *port.Protocol, protocols...)
		}
		switch {
		case port.Port == nil && port.EndPort != nil:
			v.Invalid(p.Child("endPort"), *port.EndPort, "may not be specified when `port` is not specified")
		case port.Port == nil:
		case port.Port.Type == intstr.String:
			if port.EndPort != nil {
				v.Invalid(p.Child("endPort"), *port.EndPort, "may not be specified when `port` is non-numeric")
			}
			v.Messages(p, "port", port.Port.StrVal, validationutil.IsValidPortName(port.Port.StrVal))
		default:
			v.portNumber(p.Child("port"), port.Port.IntVal)
			if port.EndPort != nil {
				if *port.EndPort < port.Port.IntVal {
					v.Invalid(p.Child("endPort"), *port.EndPort, "must be greater than or equal to `port`")
				}
				v.portNumber(p.Child("endPort"), *port.EndPort)
			}
		}
	}
}

func (v *policyCheck) portNumber(p *field.Path, port int32) {
	for _, m := range validationutil.IsValidPortNum(int(port)) {
		v.Invalid(p, port, m)
	}
}

func (v *policyCheck) peers(path *field.Path, peers []networkingv1.NetworkPolicyPeer) {
	for i := range peers {
		peer, p := &peers[i], path.Index(i)
		if peer.PodSelector != nil {
			v.selector(p.Child("podSelector"), peer.PodSelector)
		}
		if peer.NamespaceSelector != nil {
			v.selector(p.Child("namespaceSelector"), peer.NamespaceSelector)
		}
		if peer.IPBlock != nil {
			v.block(p.Child("ipBlock"), peer.IPBlock)
		}
		switch selects := peer.PodSelector != nil || peer.NamespaceSelector != nil; {
		case !selects && peer.IPBlock == nil:
			v.Required(p, "must specify a peer")
		case selects && peer.IPBlock != nil:
			v.Forbidden(p, "may not specify both ipBlock and another peer")
		}
	}
}

func (v *policyCheck) block(p *field.Path, b *networkingv1.IPBlock) {
	if b.CIDR == "" {
		v.Required(p.Child("cidr"), "")
		return
	}
	v.Append(validationutil.IsValidCIDRForLegacyField(p.Child("cidr"), b.CIDR, true, v.known))
	cidr, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return
	}
	for i, text := range b.Except {
		at := p.Child("except").Index(i)
		v.Append(validationutil.IsValidCIDRForLegacyField(at, text, true, v.known))
		except, err := netip.ParsePrefix(text)
		if err == nil && (!cidr.Masked().Contains(except.Addr()) || cidr.Bits() >= except.Bits()) {
			v.Invalid(at, text, "must be a strict subset of `cidr`")
		}
	}
}

// eachBlock calls f with the blocks of addresses of a policy.
func eachBlock(p *networkingv1.NetworkPolicy, f func(*field.Path, *networkingv1.IPBlock)) {
	each := func(path *field.Path, peers []networkingv1.NetworkPolicyPeer) {
		for i := range peers {
			if b := peers[i].IPBlock; b != nil {
				f(path.Index(i).Child("ipBlock"), b)
			}
		}
	}
	for i := range p.Spec.Ingress {
		each(field.NewPath("spec", "ingress").Index(i).Child("from"), p.Spec.Ingress[i].From)
	}
	for i := range p.Spec.Egress {
		each(field.NewPath("spec", "egress").Index(i).Child("to"), p.Spec.Egress[i].To)
	}
}

func policyWarnings(p *networkingv1.NetworkPolicy) (out []string) {
	eachBlock(p, func(path *field.Path, b *networkingv1.IPBlock) {
		out = append(out, validationutil.GetWarningsForCIDR(path.Child("cidr"), b.CIDR)...)
		for i, except := range b.Except {
			out = append(out, validationutil.GetWarningsForCIDR(path.Child("except").Index(i), except)...)
		}
	})
	return out
}

package core

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/intstr"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

// maxAffinitySeconds is the maximum of ClientIP session affinity: one day.
const maxAffinitySeconds = 86400

func validateService(s *corev1.Service) field.ErrorList {
	var e check.Errors
	p := field.NewPath("spec")
	spec := &s.Spec
	switch spec.Type {
	case corev1.ServiceTypeExternalName:
		validateExternalName(&e, spec, p)
	case corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort:
		if len(spec.ClusterIPs) > 0 && spec.ClusterIPs[0] == corev1.ClusterIPNone {
			e.Invalid(p.Child("clusterIPs").Index(0), spec.ClusterIPs[0],
				fmt.Sprintf("may not be set to 'None' for %s services", spec.Type))
		}
	}
	check.OneOf(&e, p, "type", spec.Type, corev1.ServiceTypeClusterIP, corev1.ServiceTypeExternalName,
		corev1.ServiceTypeLoadBalancer, corev1.ServiceTypeNodePort)
	validateServicePorts(&e, s, p)
	e.Labels(p, "selector", spec.Selector)
	validateAffinity(&e, spec, p)
	validateClusterIPs(&e, spec, p)
	validateFamilies(&e, spec, p)
	validateExternal(&e, s, p)
	return e.List
}

func validateExternalName(e *check.Errors, s *corev1.ServiceSpec, p *field.Path) {
	name := strings.TrimSuffix(s.ExternalName, ".")
	if name == "" {
		e.Required(p.Child("externalName"), "")
		return
	}
	e.Messages(p, "externalName", name, check.Subdomain(name))
}

func validateServicePorts(e *check.Errors, s *corev1.Service, p *field.Path) {
	spec := &s.Spec
	headless := spec.ClusterIP == corev1.ClusterIPNone
	if len(spec.Ports) == 0 && !headless && spec.Type != corev1.ServiceTypeExternalName {
		e.Required(p.Child("ports"), "")
	}
	var names check.Seen
	type key struct {
		protocol corev1.Protocol
		port     int32
	}
	ports, nodePorts := map[key]bool{}, map[key]bool{}
	for i := range spec.Ports {
		port, at := &spec.Ports[i], p.Child("ports").Index(i)
		validateServicePort(e, port, at, len(spec.Ports) > 1, &names)
		if k := (key{port.Protocol, port.Port}); ports[k] {
			e.Duplicate(at, corev1.ServicePort{Protocol: port.Protocol, Port: port.Port})
		} else {
			ports[k] = true
		}
		if port.NodePort == 0 {
			continue
		}
		if spec.Type == corev1.ServiceTypeClusterIP {
			e.Forbidden(at.Child("nodePort"), fmt.Sprintf("may not be used when `type` is '%s'", spec.Type))
		}
		if k := (key{port.Protocol, port.NodePort}); nodePorts[k] {
			e.Duplicate(at.Child("nodePort"), port.NodePort)
		} else {
			nodePorts[k] = true
		}
	}
}

func validateServicePort(e *check.Errors, port *corev1.ServicePort, p *field.Path, named bool, names *check.Seen) {
	switch {
	case port.Name == "" && named:
		e.Required(p.Child("name"), "")
	case port.Name != "":
		e.Messages(p, "name", port.Name, check.Label(port.Name))
		if names.Add(port.Name) {
			e.Duplicate(p.Child("name"), port.Name)
		}
	}
	e.PortNumber(p, "port", int(port.Port))
	check.OneOf(e, p, "protocol", port.Protocol, corev1.ProtocolSCTP, corev1.ProtocolTCP, corev1.ProtocolUDP)
	if port.TargetPort.Type == intstr.Int {
		e.PortNumber(p, "targetPort", port.TargetPort.IntValue())
	} else {
		e.Messages(p, "targetPort", port.TargetPort.StrVal, validationutil.IsValidPortName(port.TargetPort.StrVal))
	}
	if port.AppProtocol != nil {
		e.Messages(p, "appProtocol", *port.AppProtocol, check.LabelKey(*port.AppProtocol))
	}
}

func validateAffinity(e *check.Errors, s *corev1.ServiceSpec, p *field.Path) {
	check.OneOf(e, p, "sessionAffinity", s.SessionAffinity, corev1.ServiceAffinityClientIP, corev1.ServiceAffinityNone)
	c := s.SessionAffinityConfig
	switch {
	case s.SessionAffinity == corev1.ServiceAffinityNone && c != nil:
		e.Forbidden(p.Child("sessionAffinityConfig"), "must not be set when session affinity is None")
	case s.SessionAffinity == corev1.ServiceAffinityClientIP && c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil:
		if n := *c.ClientIP.TimeoutSeconds; n <= 0 || n > maxAffinitySeconds {
			e.Invalid(p.Child("sessionAffinityConfig", "clientIP", "timeoutSeconds"), n,
				fmt.Sprintf("must be greater than 0 and less than %d", maxAffinitySeconds))
		}
	}
}

// ValidateClusterIPs checks the requested addresses and families of a Service before any address
// is allocated.
func ValidateClusterIPs(s *corev1.Service) field.ErrorList {
	var e check.Errors
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	p := field.NewPath("spec")
	validateClusterIPs(&e, &s.Spec, p)
	validateFamilyNames(&e, &s.Spec, p)
	return e.List
}

func validateClusterIPs(e *check.Errors, s *corev1.ServiceSpec, p *field.Path) {
	at := p.Child("clusterIPs")
	if s.Type == corev1.ServiceTypeExternalName {
		if len(s.ClusterIPs) > 0 {
			e.Forbidden(at, "may not be set for ExternalName services")
		}
		return
	}
	if s.ClusterIP != "" && len(s.ClusterIPs) == 0 {
		e.Required(at, "")
		return
	}
	if s.ClusterIP == "" && len(s.ClusterIPs) > 0 {
		e.Invalid(at, s.ClusterIPs, "must be empty when `clusterIP` is not specified")
	} else if len(s.ClusterIPs) > 0 && s.ClusterIP != s.ClusterIPs[0] {
		e.Invalid(at, s.ClusterIPs, "first value must match `clusterIP`")
	}
	if len(s.ClusterIPs) > 1 && slices.Contains(s.ClusterIPs, corev1.ClusterIPNone) {
		e.Invalid(at, s.ClusterIPs, "'None' must be the first and only value")
	}
	if len(s.ClusterIPs) > 2 {
		e.Invalid(at, s.ClusterIPs, "may only hold up to 2 values")
	}
	before := len(e.List)
	for i, ip := range s.ClusterIPs {
		if ip == corev1.ClusterIPNone {
			continue
		}
		if errs := validationutil.IsValidIPForLegacyField(at.Index(i), ip, true, nil); len(errs) > 0 {
			e.Append(errs)
			continue
		}
		if i < len(s.IPFamilies) && familyOf(ip) != s.IPFamilies[i] {
			e.Invalid(at.Index(i), ip, fmt.Sprintf("expected an %v value as indicated by `ipFamilies[%v]`", s.IPFamilies[i], i))
		}
	}
	if len(e.List) == before && len(s.ClusterIPs) == 2 && familyOf(s.ClusterIPs[0]) == familyOf(s.ClusterIPs[1]) &&
		s.ClusterIPs[0] != corev1.ClusterIPNone {
		e.Invalid(at, s.ClusterIPs, "may specify no more than one IP for each IP family")
	}
}

func familyOf(ip string) corev1.IPFamily {
	if a, err := netip.ParseAddr(ip); err == nil && a.Is6() {
		return corev1.IPv6Protocol
	}
	return corev1.IPv4Protocol
}

func validateFamilies(e *check.Errors, s *corev1.ServiceSpec, p *field.Path) {
	if s.Type == corev1.ServiceTypeExternalName {
		if s.IPFamilyPolicy != nil {
			e.Forbidden(p.Child("ipFamilyPolicy"), "may not be set for ExternalName services")
		}
		if len(s.IPFamilies) > 0 {
			e.Forbidden(p.Child("ipFamilies"), "may not be set for ExternalName services")
		}
		return
	}
	validateFamilyNames(e, s, p)
	if s.IPFamilyPolicy != nil {
		switch {
		case *s.IPFamilyPolicy == corev1.IPFamilyPolicySingleStack && len(s.IPFamilies) > 1 && s.IPFamilies[0] != s.IPFamilies[1]:
			e.Invalid(p.Child("ipFamilyPolicy"), *s.IPFamilyPolicy,
				"must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified")
		case *s.IPFamilyPolicy == corev1.IPFamilyPolicyRequireDualStack && !placeless(s):
			e.Invalid(p.Child("ipFamilyPolicy"), *s.IPFamilyPolicy, "this cluster is not configured for dual-stack services")
		}
	}
	for i, f := range s.IPFamilies {
		if f == corev1.IPv6Protocol && len(s.IPFamilies) == 1 && s.ClusterIP == "" {
			e.Invalid(p.Child("ipFamilies").Index(i), f, "not configured on this cluster")
		}
	}
}

// validateFamilyNames checks the names of families, that there are no duplicates, and the policy.
func validateFamilyNames(e *check.Errors, s *corev1.ServiceSpec, p *field.Path) {
	if s.IPFamilyPolicy != nil {
		check.Supported(e, p, "ipFamilyPolicy", *s.IPFamilyPolicy,
			corev1.IPFamilyPolicyPreferDualStack, corev1.IPFamilyPolicyRequireDualStack, corev1.IPFamilyPolicySingleStack)
	}
	for i, f := range s.IPFamilies {
		at := p.Child("ipFamilies").Index(i)
		if f != corev1.IPv4Protocol && f != corev1.IPv6Protocol {
			e.List = append(e.List, field.NotSupported(at, f, []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}))
		}
		if slices.Contains(s.IPFamilies[:i], f) {
			e.Duplicate(at, f)
		}
	}
}

func validateExternal(e *check.Errors, s *corev1.Service, p *field.Path) {
	spec := &s.Spec
	for i, ip := range spec.ExternalIPs {
		at := p.Child("externalIPs").Index(i)
		if errs := validationutil.IsValidIPForLegacyField(at, ip, true, nil); len(errs) > 0 {
			e.Append(errs)
			continue
		}
		notLocal(e, ip, at)
	}
	validateTrafficPolicies(e, s, p)
	if spec.Type != corev1.ServiceTypeLoadBalancer {
		if spec.AllocateLoadBalancerNodePorts != nil {
			e.Forbidden(p.Child("allocateLoadBalancerNodePorts"), "may only be used when `type` is 'LoadBalancer'")
		}
		if spec.LoadBalancerClass != nil {
			e.Forbidden(p.Child("loadBalancerClass"), "may only be used when `type` is 'LoadBalancer'")
		}
		if len(spec.LoadBalancerSourceRanges) > 0 {
			e.Forbidden(p.Child("LoadBalancerSourceRanges"), "may only be used when `type` is 'LoadBalancer'")
		}
	} else {
		if spec.AllocateLoadBalancerNodePorts == nil {
			e.Required(p.Child("allocateLoadBalancerNodePorts"), "")
		}
		if spec.LoadBalancerClass != nil {
			e.Messages(p, "loadBalancerClass", *spec.LoadBalancerClass, check.LabelKey(*spec.LoadBalancerClass))
		}
		validateRangesAnnotation(e, s)
	}
	for i, cidr := range spec.LoadBalancerSourceRanges {
		e.Append(validationutil.IsValidCIDRForLegacyField(p.Child("LoadBalancerSourceRanges").Index(i), strings.TrimSpace(cidr), true, nil))
	}
	if d := spec.TrafficDistribution; d != nil {
		check.Supported(e, p, "trafficDistribution", *d,
			corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone, corev1.ServiceTrafficDistributionPreferSameNode)
	}
}

// validateRangesAnnotation checks the annotation that preceded loadBalancerSourceRanges.
func validateRangesAnnotation(e *check.Errors, s *corev1.Service) {
	text, set := s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]
	if !set || strings.TrimSpace(text) == "" {
		return
	}
	at := field.NewPath("metadata", "annotations").Key(corev1.AnnotationLoadBalancerSourceRangesKey)
	for cidr := range strings.SplitSeq(strings.TrimSpace(text), ",") {
		e.Append(validationutil.IsValidCIDRForLegacyField(at, strings.TrimSpace(cidr), true, nil))
	}
}

// notLocal refuses addresses that cannot belong to another host.
func notLocal(e *check.Errors, text string, p *field.Path) {
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return
	}
	switch {
	case ip.IsUnspecified():
		e.Invalid(p, text, "may not be unspecified ("+text+")")
	case ip.IsLoopback():
		e.Invalid(p, text, "may not be in the loopback range (127.0.0.0/8, ::1/128)")
	case ip.IsLinkLocalUnicast():
		e.Invalid(p, text, "may not be in the link-local range (169.254.0.0/16, fe80::/10)")
	case ip.IsLinkLocalMulticast():
		e.Invalid(p, text, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
	}
}

func validateTrafficPolicies(e *check.Errors, s *corev1.Service, p *field.Path) {
	spec := &s.Spec
	switch policy := spec.ExternalTrafficPolicy; {
	case !reachedFromOutside(s) && policy != "":
		e.Invalid(p.Child("externalTrafficPolicy"), policy, "may only be set for externally-accessible services")
	case reachedFromOutside(s):
		check.OneOf(e, p, "externalTrafficPolicy", policy, corev1.ServiceExternalTrafficPolicyCluster, corev1.ServiceExternalTrafficPolicyLocal)
	}
	if n := spec.HealthCheckNodePort; n != 0 {
		if !NeedsHealthCheckNodePort(s) {
			e.Invalid(p.Child("healthCheckNodePort"), n, "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'")
		} else {
			e.PortNumber(p, "healthCheckNodePort", int(n))
		}
	} else if NeedsHealthCheckNodePort(s) {
		e.Invalid(p.Child("healthCheckNodePort"), n, "may not be 0")
	}
	switch policy := spec.InternalTrafficPolicy; {
	case policy == nil && spec.Type != corev1.ServiceTypeExternalName:
		e.Required(p.Child("internalTrafficPolicy"), "")
	case policy != nil:
		check.Supported(e, p, "internalTrafficPolicy", *policy, corev1.ServiceInternalTrafficPolicyCluster, corev1.ServiceInternalTrafficPolicyLocal)
	}
}

func validateServiceUpdate(s, old *corev1.Service) field.ErrorList {
	var e check.Errors
	p := field.NewPath("spec")
	spec, was := &s.Spec, &old.Spec
	if was.Type != corev1.ServiceTypeExternalName && spec.Type != corev1.ServiceTypeExternalName &&
		was.ClusterIP != "" && len(was.ClusterIPs) > 0 {
		if spec.ClusterIP != was.ClusterIP {
			e.Invalid(p.Child("clusterIPs").Index(0), s.Spec.ClusterIPs, "may not change once set")
		}
	}
	if was.Type == corev1.ServiceTypeLoadBalancer && spec.Type == corev1.ServiceTypeLoadBalancer &&
		!equality.Semantic.DeepEqual(spec.LoadBalancerClass, was.LoadBalancerClass) {
		e.Invalid(p.Child("loadBalancerClass"), spec.LoadBalancerClass, "may not change once set")
	}
	if NeedsHealthCheckNodePort(old) && NeedsHealthCheckNodePort(s) && spec.HealthCheckNodePort != was.HealthCheckNodePort {
		e.Forbidden(p.Child("healthCheckNodePort"), check.Immutable)
	}
	e.Append(validateService(s))
	return e.List
}

func validateServiceStatus(s, old *corev1.Service) field.ErrorList {
	var e check.Errors
	p := field.NewPath("status", "loadBalancer")
	ingress := s.Status.LoadBalancer.Ingress
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer && len(ingress) > 0 &&
		!equality.Semantic.DeepEqual(s.Status.LoadBalancer, old.Status.LoadBalancer) {
		e.Forbidden(p.Child("ingress"), "may only be used when `spec.type` is 'LoadBalancer'")
		return e.List
	}
	for i := range ingress {
		at := p.Child("ingress").Index(i)
		in := &ingress[i]
		if in.IP != "" {
			e.Append(validationutil.IsValidIPForLegacyField(at.Child("ip"), in.IP, true, nil))
		}
		switch {
		case in.IP == "" && in.IPMode != nil:
			e.Forbidden(at.Child("ipMode"), "may not be specified when `ip` is not set")
		case in.IP != "" && in.IPMode == nil:
			e.Required(at.Child("ipMode"), "must be specified when `ip` is set")
		case in.IPMode != nil:
			check.Supported(&e, at, "ipMode", *in.IPMode, corev1.LoadBalancerIPModeProxy, corev1.LoadBalancerIPModeVIP)
		}
		if in.Hostname != "" {
			e.Messages(at, "hostname", in.Hostname, check.Subdomain(in.Hostname))
			if _, err := netip.ParseAddr(in.Hostname); err == nil {
				e.Invalid(at.Child("hostname"), in.Hostname, "must be a DNS name, not an IP address")
			}
		}
	}
	return e.List
}

// serviceWarnings returns warnings about fields that have no effect or are deprecated.
func serviceWarnings(s *corev1.Service) []string {
	var list []string
	warn := func(text string) { list = append(list, text) }
	spec := &s.Spec
	if spec.ClusterIP == corev1.ClusterIPNone {
		if len(spec.ExternalIPs) > 0 {
			warn("spec.externalIPs is ignored for headless services")
		}
		if spec.LoadBalancerIP != "" {
			warn("spec.loadBalancerIP is ignored for headless services")
		}
		if spec.SessionAffinity != corev1.ServiceAffinityNone {
			warn("spec.SessionAffinity is ignored for headless services")
		}
	} else if len(spec.ExternalIPs) > 0 {
		warn("spec.externalIPs is deprecated and may no longer be implemented in some clusters")
	}
	if spec.Type != corev1.ServiceTypeExternalName && spec.ExternalName != "" {
		warn(`spec.externalName is ignored when spec.type is not "ExternalName"`)
	}
	if d := spec.TrafficDistribution; d != nil && *d == corev1.ServiceTrafficDistributionPreferClose {
		warn(`spec.trafficDistribution: "PreferClose" is deprecated; use "PreferSameZone"`)
	}
	return list
}

package networking

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/validate/content"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// ClassAnnotation names the class of an Ingress. It preceded spec.ingressClassName.
const ClassAnnotation = "kubernetes.io/ingress.class"

const notAnAddress = "must be a DNS name, not an IP address"

// Ingress returns the row of ingresses. An ingress controller acts on them.
func Ingress() *resource.Kind {
	k := row.Namespaced[networkingv1.Ingress, networkingv1.IngressList](networkingv1.SchemeGroupVersion, "ingresses", "ingress")
	k.ShortNames = []string{"ing"}
	spec := networkingv1.IngressSpec{}
	k.Columns = []metav1.TableColumnDefinition{
		column.Text("Class", column.Doc(spec, "ingressClassName")),
		column.Text("Hosts", column.Doc(networkingv1.IngressRule{}, "host")),
		column.Text("Address", column.Doc(networkingv1.IngressStatus{}, "loadBalancer")),
		column.Text("Ports", column.Doc(spec, "tls")),
		column.AgeColumn(),
	}
	k.Cells = ingressCells
	k.Rules = resource.Typed[*networkingv1.Ingress]{
		PrepareCreate:  func(in *networkingv1.Ingress) { in.Status = networkingv1.IngressStatus{} },
		PrepareUpdate:  func(in, old *networkingv1.Ingress) { in.Status = old.Status },
		Validate:       validateNewIngress,
		ValidateUpdate: validateIngress,
		Warnings:       ingressWarnings,
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*networkingv1.Ingress]{
			PrepareUpdate:  func(in, old *networkingv1.Ingress) { in.Spec = old.Spec },
			ValidateUpdate: validateIngressStatus,
			Warnings:       ingressStatusWarnings,
		}.Rules()),
	}
	return k
}

func validateNewIngress(in *networkingv1.Ingress) field.ErrorList {
	e := check.Errors{List: validateIngress(in, nil)}
	class, annotated := in.Annotations[ClassAnnotation]
	if annotated && in.Spec.IngressClassName != nil && class != *in.Spec.IngressClassName {
		e.Invalid(field.NewPath("annotations").Child(ClassAnnotation), class, "must match `ingressClassName` when both are specified")
	}
	return e.List
}

// validateIngress checks an Ingress. old is its previous state, or nil. Names of Secrets are not
// checked if the old state has an invalid one, nor are the rules of wildcard hosts if one of them
// was invalid: Kubernetes accepted both in earlier versions.
func validateIngress(in, old *networkingv1.Ingress) field.ErrorList {
	var e ingressCheck
	spec, p := &in.Spec, field.NewPath("spec")
	if len(spec.Rules) == 0 && spec.DefaultBackend == nil {
		e.Invalid(p, spec.Rules, "either `defaultBackend` or `rules` must be specified")
	}
	if spec.DefaultBackend != nil {
		e.backend(p.Child("defaultBackend"), spec.DefaultBackend)
	}
	looseWildcards := old != nil && slices.ContainsFunc(old.Spec.Rules, func(r networkingv1.IngressRule) bool {
		var was ingressCheck
		if strings.Contains(r.Host, "*") {
			was.paths(nil, r.HTTP)
		}
		return len(was.List) > 0
	})
	for i := range spec.Rules {
		r, at := &spec.Rules[i], p.Child("rules").Index(i)
		if _, err := netip.ParseAddr(r.Host); err == nil {
			e.Invalid(at.Child("host"), r.Host, notAnAddress)
		}
		if r.Host != "" {
			e.host(at.Child("host"), r.Host)
		}
		if !looseWildcards || !strings.Contains(r.Host, "*") {
			e.paths(at.Child("http"), r.HTTP)
		}
	}
	looseSecrets := old != nil && slices.ContainsFunc(old.Spec.TLS, func(t networkingv1.IngressTLS) bool {
		return t.SecretName != "" && len(check.Subdomain(t.SecretName)) > 0
	})
	for i := range spec.TLS {
		t, at := &spec.TLS[i], p.Child("tls").Index(i)
		for j, host := range t.Hosts {
			e.host(at.Child("hosts").Index(j), host)
		}
		if t.SecretName != "" && !looseSecrets {
			e.Messages(at, "secretName", t.SecretName, check.Subdomain(t.SecretName))
		}
	}
	if class := spec.IngressClassName; class != nil {
		e.Messages(p, "ingressClassName", *class, check.Subdomain(*class))
	}
	return e.List
}

// ingressCheck collects the errors of an Ingress.
type ingressCheck struct{ check.Errors }

// host checks a host, which may begin with a wildcard.
func (e *ingressCheck) host(p *field.Path, host string) {
	if strings.Contains(host, "*") {
		e.Messages(p, "", host, validationutil.IsWildcardDNS1123Subdomain(host))
	} else {
		e.Messages(p, "", host, check.Subdomain(host))
	}
}

func (e *ingressCheck) paths(p *field.Path, http *networkingv1.HTTPIngressRuleValue) {
	if http == nil {
		return
	}
	if len(http.Paths) == 0 {
		e.Required(p.Child("paths"), "")
	}
	for i := range http.Paths {
		e.path(p.Child("paths").Index(i), &http.Paths[i])
	}
}

func (e *ingressCheck) path(p *field.Path, path *networkingv1.HTTPIngressPath) {
	if path.PathType == nil {
		e.Required(p.Child("pathType"), "pathType must be specified")
		return
	}
	absolute := func() {
		if !strings.HasPrefix(path.Path, "/") {
			e.Invalid(p.Child("path"), path.Path, "must be an absolute path")
		}
	}
	switch *path.PathType {
	case networkingv1.PathTypeExact, networkingv1.PathTypePrefix:
		absolute()
		for _, part := range []string{"//", "/./", "/../", "%2f", "%2F"} {
			if strings.Contains(path.Path, part) {
				e.Invalid(p.Child("path"), path.Path, fmt.Sprintf("must not contain '%s'", part))
			}
		}
		for _, end := range []string{"/..", "/."} {
			if strings.HasSuffix(path.Path, end) {
				e.Invalid(p.Child("path"), path.Path, fmt.Sprintf("cannot end with '%s'", end))
			}
		}
	case networkingv1.PathTypeImplementationSpecific:
		if path.Path != "" {
			absolute()
		}
	default:
		e.List = append(e.List, field.NotSupported(p.Child("pathType"), *path.PathType, []networkingv1.PathType{
			networkingv1.PathTypeExact, networkingv1.PathTypeImplementationSpecific, networkingv1.PathTypePrefix,
		}))
	}
	e.backend(p.Child("backend"), &path.Backend)
}

func (e *ingressCheck) backend(p *field.Path, b *networkingv1.IngressBackend) {
	switch {
	case b.Resource != nil && b.Service != nil:
		e.Invalid(p, "", "cannot set both resource and service backends")
	case b.Resource != nil:
		e.reference(p.Child("resource"), b.Resource)
	case b.Service != nil:
		e.service(p, b.Service)
	default:
		e.Invalid(p, "", "resource or service backend is required")
	}
}

func (e *ingressCheck) service(p *field.Path, s *networkingv1.IngressServiceBackend) {
	at := p.Child("service")
	if s.Name == "" {
		e.Required(at.Child("name"), "")
	} else {
		e.Messages(at, "name", s.Name, check.Label(s.Name))
	}
	switch port := s.Port; {
	case port.Name != "" && port.Number != 0:
		e.Invalid(p, "", "cannot set both port name & port number")
	case port.Name != "":
		e.Messages(at.Child("port"), "name", port.Name, validationutil.IsValidPortName(port.Name))
	case port.Number != 0:
		for _, m := range validationutil.IsValidPortNum(int(port.Number)) {
			e.Invalid(at.Child("port", "number"), port.Number, m)
		}
	default:
		e.Required(p, "port name or number is required")
	}
}

func (e *ingressCheck) reference(p *field.Path, r *corev1.TypedLocalObjectReference) {
	if r.APIGroup != nil {
		e.Messages(p, "apiGroup", *r.APIGroup, check.Subdomain(*r.APIGroup))
	}
	e.segment(p, "kind", r.Kind)
	e.segment(p, "name", r.Name)
}

// segment checks a required name that becomes a part of a path.
func (e *ingressCheck) segment(p *field.Path, child, value string) {
	if value == "" {
		e.Required(p.Child(child), "")
	} else {
		e.Messages(p, child, value, content.IsPathSegmentName(value))
	}
}

func validateIngressStatus(in, old *networkingv1.Ingress) field.ErrorList {
	var e ingressCheck
	var known []string
	for _, l := range old.Status.LoadBalancer.Ingress {
		known = append(known, l.IP)
	}
	p := field.NewPath("status", "loadBalancer", "ingress")
	for i, l := range in.Status.LoadBalancer.Ingress {
		at := p.Index(i)
		if l.IP != "" {
			e.Append(validationutil.IsValidIPForLegacyField(at.Child("ip"), l.IP, true, known))
		}
		if l.Hostname == "" {
			continue
		}
		e.Messages(at, "hostname", l.Hostname, check.Subdomain(l.Hostname))
		if _, err := netip.ParseAddr(l.Hostname); err == nil {
			e.Invalid(at.Child("hostname"), l.Hostname, notAnAddress)
		}
	}
	return e.List
}

func ingressWarnings(in, old *networkingv1.Ingress) []string {
	if _, annotated := in.Annotations[ClassAnnotation]; old != nil || !annotated || in.Spec.IngressClassName != nil {
		return nil
	}
	return []string{fmt.Sprintf("annotation %q is deprecated, please use 'spec.ingressClassName' instead", ClassAnnotation)}
}

func ingressStatusWarnings(in, _ *networkingv1.Ingress) (out []string) {
	for i, l := range in.Status.LoadBalancer.Ingress {
		if l.IP != "" {
			out = append(out, validationutil.GetWarningsForIP(field.NewPath("status", "loadBalancer", "ingress").Index(i), l.IP)...)
		}
	}
	return out
}

func ingressCells(o resource.Object) []any {
	in := o.(*networkingv1.Ingress)
	class, ports := "<none>", "80"
	if in.Spec.IngressClassName != nil {
		class = *in.Spec.IngressClassName
	}
	if len(in.Spec.TLS) > 0 {
		ports = "80, 443"
	}
	var addresses []string
	for _, l := range in.Status.LoadBalancer.Ingress {
		if address := cmp.Or(l.IP, l.Hostname); address != "" {
			addresses = append(addresses, address)
		}
	}
	slices.Sort(addresses)
	return []any{class, hosts(in.Spec.Rules), strings.Join(slices.Compact(addresses), ","), ports, column.Age(in.CreationTimestamp)}
}

// hosts returns the first three hosts and, as Kubernetes does, how many rules are beyond three.
func hosts(rules []networkingv1.IngressRule) string {
	const most = 3
	var list []string
	for i := range rules {
		if len(list) == most {
			return fmt.Sprintf("%s + %d more...", strings.Join(list, ","), len(rules)-most)
		}
		if rules[i].Host != "" {
			list = append(list, rules[i].Host)
		}
	}
	if len(list) == 0 {
		return "*"
	}
	return strings.Join(list, ",")
}

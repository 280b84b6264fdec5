package podspec

import (
	"fmt"
	"math"

	corev1 "k8s.io/api/core/v1"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

// Kubernetes' limits on DNS configuration, which are those of resolvers.
const (
	maxNameservers  = 3
	maxSearches     = 32
	maxSearchLength = 2048
)

// validator checks a single spec.
type validator struct {
	check.Errors
	spec *corev1.PodSpec
	// volumes by name, for the mounts of containers.
	volumes map[string]*corev1.VolumeSource
	// inPod is true for the spec of a pod, and false for that of a template.
	inPod bool
}

// ValidateCreate checks a new pod whose defaults are set.
func ValidateCreate(p *corev1.Pod) field.ErrorList {
	e := check.Errors{List: validatePod(p)}
	if len(p.Spec.EphemeralContainers) > 0 {
		e.Forbidden(field.NewPath("spec", "ephemeralContainers"), "cannot be set on create")
	}
	annotationsMatch(&e, p.Annotations, &p.Spec, nil)
	return e.List
}

// validatePod checks a pod's spec, and what its annotations say about it.
func validatePod(p *corev1.Pod) field.ErrorList {
	var e check.Errors
	validateAnnotations(&e, p.Annotations, &p.Spec, nil, "metadata", "annotations")
	v := &validator{spec: &p.Spec, inPod: true}
	e.Append(v.validate(field.NewPath("spec")))
	return e.List
}

func (v *validator) validate(p *field.Path) field.ErrorList {
	v.unsupported(p)
	v.windows(p)
	v.validateVolumes(p.Child("volumes"))
	v.validateContainers(p)
	v.validateEphemeral(p)
	v.validatePodResources(p)
	v.validateLifetime(p)
	v.validateNames(p)
	v.validateNetwork(p)
	v.validatePodSecurity(p)
	v.validateScheduling(p)
	return v.List
}

func (v *validator) validateLifetime(p *field.Path) {
	s := v.spec
	check.OneOf(&v.Errors, p, "restartPolicy", s.RestartPolicy,
		corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)
	if g := s.TerminationGracePeriodSeconds; g == nil {
		v.Required(p.Child("terminationGracePeriodSeconds"), "")
	}
	if d := s.ActiveDeadlineSeconds; d != nil && (*d < 1 || *d > math.MaxInt32) {
		v.Invalid(p.Child("activeDeadlineSeconds"), *d, validationutil.InclusiveRangeError(1, math.MaxInt32))
	}
}

func (v *validator) validateNames(p *field.Path) {
	s := v.spec
	if s.ServiceAccountName != "" {
		v.Messages(p, "serviceAccountName", s.ServiceAccountName, check.Subdomain(s.ServiceAccountName))
	}
	if s.NodeName != "" {
		v.Messages(p, "nodeName", s.NodeName, check.Subdomain(s.NodeName))
	}
	if s.Hostname != "" {
		v.Messages(p, "hostname", s.Hostname, check.Label(s.Hostname))
	}
	if s.HostnameOverride != nil {
		v.validateHostnameOverride(p)
	}
	if s.Subdomain != "" {
		v.Messages(p, "subdomain", s.Subdomain, check.Label(s.Subdomain))
	}
	if s.PriorityClassName != "" {
		v.Messages(p, "priorityClassName", s.PriorityClassName, check.Subdomain(s.PriorityClassName))
	}
	if s.RuntimeClassName != nil {
		v.Messages(p, "runtimeClassName", *s.RuntimeClassName, check.Subdomain(*s.RuntimeClassName))
	}
	if len(s.Overhead) > 0 {
		ValidateResources(&v.Errors, &corev1.ResourceRequirements{Limits: s.Overhead}, p.Child("overhead"))
	}
	for i, gate := range s.ReadinessGates {
		v.Messages(p.Child("readinessGates").Index(i), "conditionType", string(gate.ConditionType), check.LabelKey(string(gate.ConditionType)))
	}
	if v.inPod && len(s.SchedulingGates) > 0 && s.NodeName != "" {
		v.Forbidden(p.Child("nodeName"), "cannot be set until all schedulingGates have been cleared")
	}
	var gates check.Seen
	for i, gate := range s.SchedulingGates {
		at := p.Child("schedulingGates").Index(i)
		v.Messages(at, "", gate.Name, check.LabelKey(gate.Name))
		if gates.Add(gate.Name) {
			v.Duplicate(at, gate.Name)
		}
	}
}

// maxHostname is the maximum length of a host name (Linux's HOST_NAME_MAX).
const maxHostname = 64

func (v *validator) validateHostnameOverride(p *field.Path) {
	name := *v.spec.HostnameOverride
	if len(name) > maxHostname {
		v.List = append(v.List, field.TooLongMaxLength(p.Child("hostnameOverride"), name, maxHostname))
	}
	v.Messages(p, "hostnameOverride", name, check.Subdomain(name))
	if fqdn := v.spec.SetHostnameAsFQDN; fqdn != nil && *fqdn {
		v.Forbidden(p.Child("hostnameOverride"), "may not be specified when setHostnameAsFQDN is true")
	}
	if v.spec.HostNetwork {
		v.Forbidden(p.Child("hostnameOverride"), "may not be specified when hostNetwork is true")
	}
}

func (v *validator) validateNetwork(p *field.Path) {
	s := v.spec
	check.OneOf(&v.Errors, p, "dnsPolicy", s.DNSPolicy,
		corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)
	v.validateDNS(p.Child("dnsConfig"))
	for i, a := range s.HostAliases {
		at := p.Child("hostAliases").Index(i)
		v.Append(validationutil.IsValidIPForLegacyField(at.Child("ip"), a.IP, true, nil))
		for j, name := range a.Hostnames {
			v.Messages(at.Child("hostnames").Index(j), "", name, check.Subdomain(name))
		}
	}
}

func (v *validator) validateDNS(p *field.Path) {
	c := v.spec.DNSConfig
	if v.spec.DNSPolicy == corev1.DNSNone && c == nil {
		v.Required(p, "must provide `dnsConfig` when `dnsPolicy` is None")
	} else if v.spec.DNSPolicy == corev1.DNSNone && len(c.Nameservers) == 0 {
		v.Required(p.Child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None")
	}
	if c == nil {
		return
	}
	if len(c.Nameservers) > maxNameservers {
		v.Invalid(p.Child("nameservers"), c.Nameservers, fmt.Sprintf("must not have more than %v nameservers", maxNameservers))
	}
	for i, ns := range c.Nameservers {
		v.Append(validationutil.IsValidIPForLegacyField(p.Child("nameservers").Index(i), ns, true, nil))
	}
	if len(c.Searches) > maxSearches {
		v.Invalid(p.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v search paths", maxSearches))
	}
	length := max(len(c.Searches)-1, 0) // the spaces between them
	for i, search := range c.Searches {
		length += len(search)
		if search == "." {
			continue
		}
		if n := len(search); n > 0 && search[n-1] == '.' {
			search = search[:n-1]
		}
		v.Messages(p.Child("searches").Index(i), "", search, validationutil.IsDNS1123SubdomainWithUnderscore(search))
	}
	if length > maxSearchLength {
		v.Invalid(p.Child("searches"), c.Searches, fmt.Sprintf("must not have more than %v characters (including spaces) in the search list", maxSearchLength))
	}
	for i, option := range c.Options {
		if option.Name == "" {
			v.Required(p.Child("options").Index(i), "must not be empty")
		}
	}
}

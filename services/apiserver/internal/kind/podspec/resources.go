package podspec

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

// native reports whether a resource is Kubernetes' own: its name has no domain, or the domain
// kubernetes.io.
func native(name corev1.ResourceName) bool {
	return !strings.Contains(string(name), "/") || strings.Contains(string(name), corev1.ResourceDefaultNamespacePrefix)
}

// Extended reports whether a resource is an extended resource, which nodes advertise under a name
// of their own. It is counted in whole units.
func Extended(name corev1.ResourceName) bool {
	return !native(name) && !strings.HasPrefix(string(name), corev1.DefaultResourceRequestsPrefix) &&
		check.LabelKey(corev1.DefaultResourceRequestsPrefix+string(name)) == nil
}

func hugePages(name corev1.ResourceName) bool {
	return strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}

// Overcommitted reports whether a limit of the resource may be above its request.
func Overcommitted(name corev1.ResourceName) bool { return native(name) && !hugePages(name) }

func standardForContainers(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		return true
	}
	return hugePages(name)
}

// standard reports whether a name is a standard resource of Kubernetes, which has no domain.
func standard(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage, corev1.ResourceStorage,
		corev1.ResourcePods, corev1.ResourceServices, corev1.ResourceReplicationControllers, corev1.ResourceQuotas,
		corev1.ResourceSecrets, corev1.ResourceConfigMaps, corev1.ResourcePersistentVolumeClaims,
		corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers,
		corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceRequestsStorage,
		corev1.ResourceRequestsEphemeralStorage,
		corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory, corev1.ResourceLimitsEphemeralStorage:
		return true
	}
	return hugePages(name) || strings.HasPrefix(string(name), corev1.ResourceRequestsHugePagesPrefix)
}

// ValidateResources checks the limits and requests of a container.
func ValidateResources(e *check.Errors, r *corev1.ResourceRequirements, p *field.Path) {
	validateRequirements(e, r, p, ValidateContainerResourceName)
}

// validateRequirements checks limits and requests. validateName checks the name of a resource in
// the list child of p.
func validateRequirements(e *check.Errors, r *corev1.ResourceRequirements, p *field.Path,
	validateName func(e *check.Errors, name corev1.ResourceName, p *field.Path, list string),
) {
	if len(r.Limits) == 0 && len(r.Requests) == 0 {
		return
	}
	cpuOrMemory, huge := false, false
	one := func(name corev1.ResourceName, q resource.Quantity, list string) {
		validateName(e, name, p, list)
		if problem := QuantityProblem(name, &q); problem != "" {
			e.Invalid(p.Child(list).Key(string(name)), q.String(), problem)
		}
		switch {
		case name == corev1.ResourceCPU || name == corev1.ResourceMemory:
			cpuOrMemory = true
		case hugePages(name):
			huge = true
			size, err := resource.ParseQuantity(strings.TrimPrefix(string(name), corev1.ResourceHugePagesPrefix))
			if err == nil && (size.Value() <= 0 || q.Value()%size.Value() != 0) {
				e.Invalid(p.Child(list).Key(string(name)), q.String(), q.String()+" is not positive integer multiple of "+string(name))
			}
		}
	}
	for name, q := range r.Limits {
		one(name, q, "limits")
	}
	for name, q := range r.Requests {
		one(name, q, "requests")
		limit, ok := r.Limits[name]
		switch {
		case ok && !Overcommitted(name) && q.Cmp(limit) != 0:
			e.Invalid(p.Child("requests"), q.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String()))
		case ok && Overcommitted(name) && q.Cmp(limit) > 0:
			e.Invalid(p.Child("requests"), q.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String()))
		case !ok && !Overcommitted(name):
			e.Required(p.Child("limits"), "Limit must be set for non overcommitable resources")
		}
	}
	if huge && !cpuOrMemory {
		e.Forbidden(p, "HugePages require cpu or memory")
	}
}

// ValidateContainerResourceName checks that name, in the list child of p, is a resource that a
// container can request.
func ValidateContainerResourceName(e *check.Errors, name corev1.ResourceName, p *field.Path, list string) {
	if !hugePages(name) && standardForContainers(name) || Extended(name) {
		return // without building the path
	}
	ValidateContainerResourceNameAt(e, name, p.Child(list).Key(string(name)))
}

// ValidateContainerResourceNameAt checks that name is a resource that a container can request.
func ValidateContainerResourceNameAt(e *check.Errors, name corev1.ResourceName, p *field.Path) {
	e.Messages(p, "", string(name), check.LabelKey(string(name)))
	switch {
	case !strings.Contains(string(name), "/"):
		if !standardForContainers(name) {
			if !standard(name) && check.LabelKey(string(name)) == nil {
				e.Invalid(p, name, "must be a standard resource type or fully qualified")
			}
			e.Invalid(p, name, "must be a standard resource for containers")
		}
	case !native(name) && !Extended(name):
		e.Invalid(p, name, "doesn't follow extended resource name standard")
	}
}

// QuantityProblem returns what is wrong with a quantity of a resource, or "". It must not be
// negative, and must be an integer if the resource is counted in units.
func QuantityProblem(name corev1.ResourceName, q *resource.Quantity) string {
	switch {
	case q.Sign() < 0:
		return check.NotNegative
	case (Extended(name) || name == corev1.ResourcePods) && q.MilliValue()%1000 != 0:
		return "must be an integer"
	}
	return ""
}

// ValidateResourceName checks the name of a resource that Kubernetes accounts for.
func ValidateResourceName(e *check.Errors, name corev1.ResourceName, p *field.Path) {
	if m := check.LabelKey(string(name)); m != nil {
		e.Messages(p, "", string(name), m)
	} else if !strings.Contains(string(name), "/") && !standard(name) {
		e.Invalid(p, name, "must be a standard resource type or fully qualified")
	}
}

// ValidateQuotaResource checks the name and the amount of a resource in a quota.
func ValidateQuotaResource(e *check.Errors, name corev1.ResourceName, q resource.Quantity, p *field.Path) {
	ValidateResourceName(e, name, p)
	if !strings.Contains(string(name), "/") && !StandardForQuota(name) {
		e.Invalid(p, name, "must be a standard resource for quota")
	}
	if q.Sign() < 0 {
		e.Invalid(p, q.String(), check.NotNegative)
	}
	if (counted(name) || Extended(name)) && q.MilliValue()%1000 != 0 {
		e.Invalid(p, q.String(), "must be an integer")
	}
}

// StandardForQuota reports whether name is a resource without a domain that a quota can limit.
func StandardForQuota(name corev1.ResourceName) bool {
	return standard(name) && name != corev1.ResourceStorage
}

// counted reports whether the resource is a number of objects.
func counted(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers,
		corev1.ResourceSecrets, corev1.ResourceConfigMaps, corev1.ResourcePersistentVolumeClaims,
		corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers:
		return true
	}
	return false
}

func (v *validator) validateResizePolicy(c *corev1.Container, p *field.Path) {
	if len(c.ResizePolicy) == 0 {
		return
	}
	var seen check.Seen
	list := p.Child("resizePolicy")
	for i, r := range c.ResizePolicy {
		at := list.Index(i)
		if seen.Add(string(r.ResourceName)) {
			v.Duplicate(at, r.ResourceName)
		}
		switch r.ResourceName {
		case corev1.ResourceCPU, corev1.ResourceMemory:
		case "":
			v.Required(list, "")
		default:
			v.List = append(v.List, field.NotSupported(list, r.ResourceName, []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory}))
		}
		switch r.RestartPolicy {
		case corev1.NotRequired:
		case corev1.RestartContainer:
			if v.spec.RestartPolicy == corev1.RestartPolicyNever {
				v.Invalid(list, r.RestartPolicy, "must be 'NotRequired' when pod `restartPolicy` is 'Never'")
			}
		case "":
			v.Required(list, "")
		default:
			v.List = append(v.List, field.NotSupported(list, r.RestartPolicy,
				[]corev1.ResourceResizeRestartPolicy{corev1.NotRequired, corev1.RestartContainer}))
		}
	}
}

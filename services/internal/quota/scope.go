package quota

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// inScopes reports whether an object matches all scopes of a quota. Objects other than pods and
// claims match no scope.
func inScopes(s *corev1.ResourceQuotaSpec, obj any) bool {
	for _, scope := range s.Scopes {
		if !inScope(corev1.ScopedResourceSelectorRequirement{ScopeName: scope, Operator: corev1.ScopeSelectorOpExists}, obj) {
			return false
		}
	}
	if s.ScopeSelector == nil {
		return true
	}
	for _, r := range s.ScopeSelector.MatchExpressions {
		if !inScope(r, obj) {
			return false
		}
	}
	return true
}

// inScope reports whether an object matches one scope.
func inScope(r corev1.ScopedResourceSelectorRequirement, obj any) bool {
	switch o := obj.(type) {
	case *corev1.Pod:
		switch r.ScopeName {
		case corev1.ResourceQuotaScopeTerminating:
			return Terminating(o)
		case corev1.ResourceQuotaScopeNotTerminating:
			return !Terminating(o)
		case corev1.ResourceQuotaScopeBestEffort:
			return bestEffort(&o.Spec)
		case corev1.ResourceQuotaScopeNotBestEffort:
			return !bestEffort(&o.Spec)
		case corev1.ResourceQuotaScopePriorityClass:
			return selects(r, o.Spec.PriorityClassName)
		case corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
			return crossesNamespaces(o.Spec.Affinity)
		}
	case *corev1.PersistentVolumeClaim:
		if r.ScopeName != corev1.ResourceQuotaScopeVolumeAttributesClass {
			return false
		}
		classes := attributesClasses(o)
		if len(classes) == 0 {
			return selects(r, "")
		}
		return slices.ContainsFunc(classes, func(class string) bool { return selects(r, class) })
	}
	return false
}

// selects reports whether a requirement selects a class by its name, or, if class is empty, an
// object without a class.
func selects(r corev1.ScopedResourceSelectorRequirement, class string) bool {
	switch r.Operator {
	case corev1.ScopeSelectorOpExists:
		return class != ""
	case corev1.ScopeSelectorOpDoesNotExist:
		return class == ""
	case corev1.ScopeSelectorOpIn:
		return class != "" && slices.Contains(r.Values, class)
	case corev1.ScopeSelectorOpNotIn:
		return class == "" || !slices.Contains(r.Values, class)
	}
	return false
}

// Terminating reports whether a pod has an activeDeadlineSeconds, as the scope of that name requires.
func Terminating(pod *corev1.Pod) bool {
	d := pod.Spec.ActiveDeadlineSeconds
	return d != nil && *d >= 0
}

// bestEffort reports whether neither the pod nor a container requests or limits CPU or memory.
func bestEffort(s *corev1.PodSpec) bool {
	asks := func(list corev1.ResourceList) bool {
		cpu, memory := list[corev1.ResourceCPU], list[corev1.ResourceMemory]
		return cpu.Sign() > 0 || memory.Sign() > 0
	}
	if r := s.Resources; r != nil && (asks(r.Requests) || asks(r.Limits)) {
		return false
	}
	for _, list := range [][]corev1.Container{s.Containers, s.InitContainers} {
		for i := range list {
			if asks(list[i].Resources.Requests) || asks(list[i].Resources.Limits) {
				return false
			}
		}
	}
	return true
}

// crossesNamespaces reports whether a term of pod affinity or anti-affinity names other namespaces.
func crossesNamespaces(a *corev1.Affinity) bool {
	if a == nil {
		return false
	}
	crosses := func(t *corev1.PodAffinityTerm) bool { return len(t.Namespaces) > 0 || t.NamespaceSelector != nil }
	any := func(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm) bool {
		return slices.ContainsFunc(required, func(t corev1.PodAffinityTerm) bool { return crosses(&t) }) ||
			slices.ContainsFunc(preferred, func(t corev1.WeightedPodAffinityTerm) bool { return crosses(&t.PodAffinityTerm) })
	}
	if p := a.PodAffinity; p != nil && any(p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution) {
		return true
	}
	p := a.PodAntiAffinity
	return p != nil && any(p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
}

// attributesClasses returns the claim's VolumeAttributesClasses: the requested one, the current one
// and the target of a modification under way.
func attributesClasses(c *corev1.PersistentVolumeClaim) []string {
	var classes []string
	for _, name := range []*string{c.Spec.VolumeAttributesClassName, c.Status.CurrentVolumeAttributesClassName} {
		if name != nil && *name != "" {
			classes = append(classes, *name)
		}
	}
	if m := c.Status.ModifyVolumeStatus; m != nil && m.TargetVolumeAttributesClassName != "" {
		classes = append(classes, m.TargetVolumeAttributesClassName)
	}
	return classes
}

package podspec

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation/field"
	resourcehelper "k8s.io/component-helpers/resource"

	"keelson.dev/services/apiserver/internal/kind/check"
)

// Resources of a whole pod (KEP-2837), which bound all of its containers together.

// totals returns what the containers of a spec request, and what they are limited to, together.
func totals(s *corev1.PodSpec) (requests, limits corev1.ResourceList) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: s.Containers, InitContainers: s.InitContainers}}
	opts := resourcehelper.PodResourcesOptions{}
	return resourcehelper.AggregateContainerRequests(pod, opts), resourcehelper.AggregateContainerLimits(pod, opts)
}

// DefaultPodResources completes the resources of a whole pod, if it has any, from those of its
// containers. It runs after admission, which may add containers.
func DefaultPodResources(s *corev1.PodSpec) {
	r := s.Resources
	if r == nil || len(r.Requests) == 0 && len(r.Limits) == 0 {
		return
	}
	requests, limits := totals(s)
	// The limit of huge pages is that of the containers. It becomes the request below, because huge
	// pages cannot be overcommitted.
	for name, q := range limits {
		if _, ok := r.Requests[name]; !ok && hugePages(name) {
			setResource(&r.Limits, name, q)
		}
	}
	for name, q := range requests {
		if forPods(name) && Overcommitted(name) {
			setResource(&r.Requests, name, q)
		}
	}
	for name, q := range r.Limits {
		if forPods(name) {
			setResource(&r.Requests, name, q)
		}
	}
	// A resource that every container limits is limited for the pod, to no less than its request.
	for name, request := range r.Requests {
		q, ok := limits[name]
		if !ok || !forPods(name) || !limitedByAll(s, name) {
			continue
		}
		if request.Cmp(q) > 0 {
			q = request
		}
		setResource(&r.Limits, name, q)
	}
}

// setResource sets a resource that the list lacks.
func setResource(list *corev1.ResourceList, name corev1.ResourceName, q resource.Quantity) {
	if _, ok := (*list)[name]; ok {
		return
	}
	if *list == nil {
		*list = corev1.ResourceList{}
	}
	(*list)[name] = q.DeepCopy()
}

// forPods reports whether a resource can be set for a whole pod.
func forPods(name corev1.ResourceName) bool { return resourcehelper.IsSupportedPodLevelResource(name) }

func limitedByAll(s *corev1.PodSpec, name corev1.ResourceName) bool {
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			if _, ok := list[i].Resources.Limits[name]; !ok {
				return false
			}
		}
	}
	return true
}

// validatePodResources checks the resources of a whole pod, and that its containers fit into them.
func (v *validator) validatePodResources(p *field.Path) {
	r := v.spec.Resources
	if r == nil {
		return
	}
	p = p.Child("resources")
	if r.Claims != nil {
		v.Forbidden(p.Child("claims"), "claims may not be set for Resources at pod-level")
	}
	validateRequirements(&v.Errors, r, p, func(e *check.Errors, name corev1.ResourceName, p *field.Path, list string) {
		at := p.Child(list).Key(string(name))
		before := len(e.List)
		if ValidateResourceName(e, name, at); len(e.List) == before && !forPods(name) {
			e.List = append(e.List, field.NotSupported(at, name, []corev1.ResourceName{
				corev1.ResourceCPU, corev1.ResourceHugePagesPrefix, corev1.ResourceMemory,
			}))
		}
	})
	requests, limits := totals(v.spec)
	for name, q := range requests {
		if pod, ok := r.Requests[name]; ok && q.Cmp(pod) > 0 {
			v.Invalid(p.Child("requests").Key(string(name)), pod.String(),
				fmt.Sprintf("must be greater than or equal to aggregate container requests of %s", q.String()))
		}
	}
	for name, q := range limits {
		if pod, ok := r.Limits[name]; ok && hugePages(name) && q.Cmp(pod) > 0 {
			v.Invalid(p.Child("limits").Key(string(name)), pod.String(),
				fmt.Sprintf("must be greater than or equal to aggregate container limits of %s", q.String()))
		}
	}
	for i := range v.spec.Containers {
		for name, q := range v.spec.Containers[i].Resources.Limits {
			if pod, ok := r.Limits[name]; ok && q.Cmp(pod) > 0 {
				// The path is Kubernetes'.
				v.Invalid(p.Child("containers").Index(i).Key(string(name)).Child("limits"), q.String(),
					fmt.Sprintf("must be less than or equal to pod limits of %s", pod.String()))
			}
		}
	}
}

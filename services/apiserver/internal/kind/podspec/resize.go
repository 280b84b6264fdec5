package podspec

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

// Resizes change the CPU and memory of a running pod's containers, and of the pod as a whole
// (KEP-1287). Everything else stays.

// PrepareResize restores everything from old but the resources, and the resize policies, which
// validation then finds if they have changed. A spec with other containers stays as it is, for
// validation to refuse.
func PrepareResize(s, old *corev1.PodSpec) {
	if len(s.Containers) != len(old.Containers) || len(s.InitContainers) != len(old.InitContainers) {
		return
	}
	whole := s.Resources
	containers, initContainers := resized(s.Containers, old.Containers), resized(s.InitContainers, old.InitContainers)
	*s = *old
	s.Containers, s.InitContainers, s.Resources = containers, initContainers, whole
	KeepPodResources(s, old)
	DefaultPodResources(s)
}

// KeepPodResources restores the resources of the whole pod that a client without knowledge of them
// has left out.
func KeepPodResources(s, old *corev1.PodSpec) {
	if s.Resources == nil {
		s.Resources = old.Resources.DeepCopy()
	}
}

// resized returns the containers of old with the resources and resize policies of list, or list
// itself if its containers have other names.
func resized(list, old []corev1.Container) []corev1.Container {
	out := make([]corev1.Container, len(old))
	for i := range old {
		if list[i].Name != old[i].Name {
			return list
		}
		out[i] = old[i]
		out[i].Resources, out[i].ResizePolicy = list[i].Resources, list[i].ResizePolicy
	}
	if len(out) == 0 {
		return old
	}
	return out
}

// ValidateResize checks a change that PrepareResize has prepared.
func ValidateResize(p, old *corev1.Pod) field.ErrorList {
	if mirror(old) {
		return field.ErrorList{field.Forbidden(field.NewPath(""), "static pods cannot be resized")}
	}
	var e check.Errors
	path := field.NewPath("spec")
	e.Append(validatePod(p))
	class := old.Status.QOSClass
	if class == "" {
		class = QOS(&old.Spec)
	}
	if class != QOS(&p.Spec) {
		e.Invalid(path, p.Status.QOSClass, "Pod QOS Class may not change as a result of resizing")
	}
	if !resizable(&old.Status) {
		e.Forbidden(path, "Pod running on node without support for resize")
	}
	validateWholeResize(&e, p.Spec.Resources, old.Spec.Resources, path)
	if !sameContainers(&e, &p.Spec, &old.Spec, path) {
		return e.List
	}
	for i := range old.Spec.InitContainers {
		c, was := &p.Spec.InitContainers[i], &old.Spec.InitContainers[i]
		at := path.Child("initContainers").Index(i)
		removed(&e, &c.Resources, &was.Resources, at.Child("resources"))
		if !resizedOnly(c, was) {
			e.Forbidden(at, "only cpu and memory resources for init or sidecar containers are mutable")
		}
		if !sidecar(c) && restartsToResize(c) && !equality.Semantic.DeepEqual(c, was) {
			e.Forbidden(at, "non-sidecar init containers with a resize policy of RestartContainer cannot be resized")
		}
	}
	for i := range old.Spec.Containers {
		c, was := &p.Spec.Containers[i], &old.Spec.Containers[i]
		removed(&e, &c.Resources, &was.Resources, path.Child("containers").Index(i).Child("resources"))
		if !resizedOnly(c, was) {
			e.Forbidden(path, "only cpu and memory resources are mutable")
		}
	}
	return e.List
}

// resizable reports whether the pod's node can resize it. A node that can reports the resources of
// running containers; that of a pod without any is not known yet.
func resizable(s *corev1.PodStatus) bool {
	for i := range s.ContainerStatuses {
		if c := &s.ContainerStatuses[i]; c.State.Running != nil {
			return c.Resources != nil
		}
	}
	return true
}

func validateWholeResize(e *check.Errors, r, old *corev1.ResourceRequirements, p *field.Path) {
	set := func(r *corev1.ResourceRequirements) bool { return r != nil && len(r.Requests)+len(r.Limits) > 0 }
	if !set(r) && !set(old) {
		return
	}
	p = p.Child("resources")
	if old == nil {
		old = &corev1.ResourceRequirements{}
	}
	if missing(r.Requests, old.Requests) {
		e.Forbidden(p.Child("requests"), "pod-level resource requests cannot be removed")
	}
	if missing(r.Limits, old.Limits) {
		e.Forbidden(p.Child("limits"), "pod-level resource limits cannot be removed")
	}
	if masked := masked(r, old); !equality.Semantic.DeepEqual(&masked, old) {
		e.Forbidden(field.NewPath("spec"), "only cpu and memory resources are mutable at pod-level")
	}
}

// sameContainers checks that a resize has not added, removed or renamed containers.
func sameContainers(e *check.Errors, s, old *corev1.PodSpec, p *field.Path) bool {
	before := len(e.List)
	for _, l := range []struct {
		name      string
		list, old []corev1.Container
	}{{"containers", s.Containers, old.Containers}, {"initContainers", s.InitContainers, old.InitContainers}} {
		if len(l.list) != len(l.old) {
			e.Forbidden(p.Child(l.name), l.name+" may not be added or removed on resize")
			continue
		}
		for i := range l.old {
			if l.list[i].Name != l.old[i].Name {
				e.Forbidden(p.Child(l.name).Index(i).Child("name"), l.name+" may not be renamed or reordered on resize")
			}
		}
	}
	return len(e.List) == before
}

// removed checks that a resize leaves every resource a value.
func removed(e *check.Errors, r, old *corev1.ResourceRequirements, p *field.Path) {
	if missing(r.Requests, old.Requests) {
		e.Forbidden(p.Child("requests"), "resource requests cannot be removed")
	}
	if missing(r.Limits, old.Limits) {
		e.Forbidden(p.Child("limits"), "resource limits cannot be removed")
	}
}

// missing reports whether list lacks a resource that old has.
func missing(list, old corev1.ResourceList) bool {
	for name := range old {
		if _, ok := list[name]; !ok {
			return true
		}
	}
	return false
}

// resizedOnly reports whether two containers differ in their CPU and memory at most.
func resizedOnly(c, old *corev1.Container) bool {
	same := *c
	same.Resources = masked(&c.Resources, &old.Resources)
	return equality.Semantic.DeepEqual(&same, old)
}

// masked returns r with the CPU and memory of old.
func masked(r, old *corev1.ResourceRequirements) corev1.ResourceRequirements {
	list := func(list, old corev1.ResourceList) corev1.ResourceList {
		out := corev1.ResourceList{}
		for name, q := range list {
			if !resizedInPlace(name) {
				out[name] = q
			}
		}
		for name, q := range old {
			if resizedInPlace(name) {
				out[name] = q
			}
		}
		return out
	}
	return corev1.ResourceRequirements{
		Requests: list(r.Requests, old.Requests), Limits: list(r.Limits, old.Limits), Claims: r.Claims,
	}
}

func resizedInPlace(name corev1.ResourceName) bool {
	return name == corev1.ResourceCPU || name == corev1.ResourceMemory
}

func restartsToResize(c *corev1.Container) bool {
	for i := range c.ResizePolicy {
		if c.ResizePolicy[i].RestartPolicy == corev1.RestartContainer {
			return true
		}
	}
	return false
}

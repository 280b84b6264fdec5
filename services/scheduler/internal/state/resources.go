package state

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Resources is an amount of what pods request and nodes have: CPU in thousandths of a
// core, the others in their own units (bytes, pieces).
type Resources struct {
	CPU, Memory, Ephemeral int64
	// Others are sorted by name; nil for nearly every pod.
	Others []Amount
}

// Amount is an amount of an extended resource, huge pages or attachable volumes.
type Amount struct {
	Name  corev1.ResourceName
	Value int64
}

// Other returns the amount of a resource other than those three, or 0.
func (r *Resources) Other(name corev1.ResourceName) int64 {
	for i := range r.Others {
		if r.Others[i].Name == name {
			return r.Others[i].Value
		}
	}
	return 0
}

// Zero reports whether nothing is requested.
func (r *Resources) Zero() bool {
	return r.CPU == 0 && r.Memory == 0 && r.Ephemeral == 0 && len(r.Others) == 0
}

// add adds sign times o.
func (r *Resources) add(o *Resources, sign int64) {
	r.CPU += sign * o.CPU
	r.Memory += sign * o.Memory
	r.Ephemeral += sign * o.Ephemeral
	for _, a := range o.Others {
		i := slices.IndexFunc(r.Others, func(b Amount) bool { return b.Name == a.Name })
		if i < 0 {
			r.Others = append(r.Others, Amount{Name: a.Name})
			i = len(r.Others) - 1
		}
		r.Others[i].Value += sign * a.Value
	}
}

// resourcesOf converts a list. The resource pods is left out.
func resourcesOf(list corev1.ResourceList) Resources {
	var r Resources
	for name, q := range list {
		switch name {
		case corev1.ResourceCPU:
			r.CPU = q.MilliValue()
		case corev1.ResourceMemory:
			r.Memory = q.Value()
		case corev1.ResourceEphemeralStorage:
			r.Ephemeral = q.Value()
		case corev1.ResourcePods:
		default:
			if v := q.Value(); v != 0 {
				r.Others = append(r.Others, Amount{name, v})
			}
		}
	}
	slices.SortFunc(r.Others, func(a, b Amount) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return r
}

// assumedRequests is what a container without requests for CPU or memory is assumed to
// request in scores, so that such pods are spread. The figures are those of Kubernetes'
// scheduler.
var assumedRequests = corev1.ResourceList{
	corev1.ResourceCPU:    *resource.NewMilliQuantity(100, resource.DecimalSI),
	corev1.ResourceMemory: *resource.NewQuantity(200<<20, resource.BinarySI),
}

// requests returns a pod's requests as filters count them, and CPU and memory as scores
// do.
func requests(pod *corev1.Pod) (r Resources, scoreCPU, scoreMemory int64) {
	opts := resourcehelper.PodResourcesOptions{
		UseStatusResources: pod.Spec.NodeName != "", InPlacePodLevelResourcesVerticalScalingEnabled: true,
	}
	r = resourcesOf(resourcehelper.PodRequests(pod, opts))
	if complete(pod) {
		return r, r.CPU, r.Memory
	}
	opts.NonMissingContainerRequests = assumedRequests
	assumed := resourcesOf(resourcehelper.PodRequests(pod, opts))
	return r, assumed.CPU, assumed.Memory
}

// complete reports whether every container requests CPU and memory.
func complete(pod *corev1.Pod) bool {
	if pod.Spec.Resources != nil {
		return false
	}
	has := func(c *corev1.Container) bool {
		_, cpu := c.Resources.Requests[corev1.ResourceCPU]
		_, memory := c.Resources.Requests[corev1.ResourceMemory]
		return cpu && memory
	}
	for i := range pod.Spec.Containers {
		if !has(&pod.Spec.Containers[i]) {
			return false
		}
	}
	for i := range pod.Spec.InitContainers {
		if !has(&pod.Spec.InitContainers[i]) {
			return false
		}
	}
	return true
}

package pod

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
)

// In-place resize (KEP-1287) has three states of a container's resources: desired, in the
// spec; allocated, which the node has promised and counts; and actual, which the runtime
// enforces. The node allocates what is desired if it fits (AdmitResize), and otherwise
// reports the condition PodResizePending. While actual differs from allocated, it reports
// PodResizeInProgress. Except for AdmitResize and Desired, every function of this package
// takes a pod whose spec holds the allocated resources.

// Allocation is the resources of a pod: those of its containers by name, and those of the
// whole pod, if it has any.
type Allocation struct {
	Containers map[string]corev1.ResourceRequirements
	Whole      *corev1.ResourceRequirements
}

// Desired returns the resources in a pod's spec.
func Desired(p *corev1.Pod) Allocation {
	a := Allocation{Containers: map[string]corev1.ResourceRequirements{}, Whole: p.Spec.Resources}
	for role, c := range Containers(p) {
		if role != Ephemeral {
			a.Containers[c.Name] = c.Resources
		}
	}
	return a
}

// Recorded returns what an earlier agent has allocated, according to the pod's status. A
// container that has none, or whose recorded requests are the desired ones, has the desired
// resources: limits alone are always granted.
func Recorded(p *corev1.Pod) Allocation {
	a := Desired(p)
	for name, desired := range a.Containers {
		st := Status(p, name)
		if st == nil || st.Resources == nil || apiequality.Semantic.DeepEqual(st.AllocatedResources, desired.Requests) {
			continue
		}
		a.Containers[name] = corev1.ResourceRequirements{Requests: st.AllocatedResources, Limits: st.Resources.Limits, Claims: desired.Claims}
	}
	return a
}

// Equal reports whether two allocations are the same amounts.
func (a Allocation) Equal(b Allocation) bool {
	return apiequality.Semantic.DeepEqual(a.Whole, b.Whole) &&
		maps.EqualFunc(a.Containers, b.Containers, func(x, y corev1.ResourceRequirements) bool { return apiequality.Semantic.DeepEqual(x, y) })
}

// Apply returns the pod with the allocated resources in its spec. It does not change p.
func (a Allocation) Apply(p *corev1.Pod) *corev1.Pod {
	if a.Equal(Desired(p)) {
		return p
	}
	out := *p
	out.Spec.Resources = a.Whole
	out.Spec.InitContainers, out.Spec.Containers = slices.Clone(p.Spec.InitContainers), slices.Clone(p.Spec.Containers)
	for _, list := range [][]corev1.Container{out.Spec.InitContainers, out.Spec.Containers} {
		for i := range list {
			if r, ok := a.Containers[list[i].Name]; ok {
				list[i].Resources = r
			}
		}
	}
	return &out
}

// AdmitResize returns why a node cannot allocate what a pod desires: the reason is Infeasible
// if the node is too small, and Deferred if others have it. It returns nil if the resources
// fit, or while the node is unknown. others are the other pods with their allocated resources.
func AdmitResize(desired *corev1.Pod, node *corev1.Node, others []*corev1.Pod) *Refusal {
	if node == nil {
		return nil
	}
	if s := short(desired, node.Status.Allocatable, nil); s != nil {
		return &Refusal{corev1.PodReasonInfeasible, fmt.Sprintf("Node didn't have enough capacity: %s, requested: %d, capacity: %d", s.name, s.requested, s.capacity)}
	}
	if s := short(desired, node.Status.Allocatable, others); s != nil {
		return &Refusal{corev1.PodReasonDeferred, s.String()}
	}
	return nil
}

// ResizeSummary returns the message of an event about a resize: what is said, and the
// resources that the resize is about.
func ResizeSummary(what string, p *corev1.Pod, failure string) string {
	type container struct {
		Name      string                      `json:"name"`
		Resources corev1.ResourceRequirements `json:"resources"`
	}
	summary := struct {
		Init       []container `json:"initContainers,omitempty"`
		Containers []container `json:"containers,omitempty"`
		Generation int64       `json:"generation"`
		Error      string      `json:"error,omitempty"`
	}{Generation: p.Generation, Error: failure}
	for role, c := range Containers(p) {
		switch role {
		case Init, Sidecar:
			summary.Init = append(summary.Init, container{c.Name, c.Resources})
		case Regular:
			summary.Containers = append(summary.Containers, container{c.Name, c.Resources})
		}
	}
	text, err := json.Marshal(summary)
	if err != nil {
		return what
	}
	return what + ": " + string(text)
}

// Resize is a running container whose actual resources are not the allocated ones.
type Resize struct {
	Container *cri.Container
	// From is nil if the actual resources are unknown. In To, -1 means no limit.
	From, To *runtimev1.LinuxContainerResources
	// Restart is true if the container must be restarted to get them.
	Restart bool
}

// Shrinks reports whether the resize sets a memory limit below the present one.
func (r Resize) Shrinks() bool {
	limit := r.To.MemoryLimitInBytes
	return limit > 0 && (r.From == nil || r.From.MemoryLimitInBytes <= 0 || limit < r.From.MemoryLimitInBytes)
}

// PlanResize returns the running containers that need a resize: first those whose memory
// shrinks, so that the sum never exceeds what is needed. actual returns an instance's actual
// resources, or nil if they are unknown, which is taken for a difference.
func PlanResize(p *corev1.Pod, state *cri.Pod, s Settings, actual func(*cri.Container) *runtimev1.LinuxContainerResources) []Resize {
	box := state.Sandbox()
	if box == nil {
		return nil
	}
	var out []Resize
	for role, c := range Containers(p) {
		inst := instance(state, box.ID, c.Name)
		if role == Init || role == Ephemeral || inst == nil || inst.State != cri.StateRunning {
			continue
		}
		want, have := ContainerResources(p, c, s.MemoryCapacity, s.Unified), actual(inst)
		cpu := have == nil || have.CpuShares != want.CpuShares || max(have.CpuQuota, 0) != want.CpuQuota
		memory := have == nil || max(have.MemoryLimitInBytes, 0) != want.MemoryLimitInBytes
		if !cpu && !memory {
			continue
		}
		r := Resize{Container: inst, From: have, To: &runtimev1.LinuxContainerResources{
			CpuShares: want.CpuShares, CpuQuota: want.CpuQuota, CpuPeriod: want.CpuPeriod, MemoryLimitInBytes: want.MemoryLimitInBytes,
		}}
		if r.To.CpuQuota == 0 {
			r.To.CpuQuota, r.To.CpuPeriod = -1, quotaPeriod
		}
		if r.To.MemoryLimitInBytes == 0 {
			r.To.MemoryLimitInBytes = -1
		}
		if s.Unified {
			r.To.MemorySwapLimitInBytes = r.To.MemoryLimitInBytes
		}
		for _, policy := range c.ResizePolicy {
			changed := policy.ResourceName == corev1.ResourceCPU && cpu || policy.ResourceName == corev1.ResourceMemory && memory
			if changed && have != nil && policy.RestartPolicy == corev1.RestartContainer {
				r.Restart = true
			}
		}
		out = append(out, r)
	}
	slices.SortStableFunc(out, func(x, y Resize) int {
		switch {
		case x.Shrinks() == y.Shrinks():
			return 0
		case x.Shrinks():
			return -1
		}
		return 1
	})
	return out
}

// Actual returns a container's allocated resources with the CPU and memory that the runtime
// reports where they differ.
func Actual(p *corev1.Pod, c *corev1.Container, r *runtimev1.LinuxContainerResources) corev1.ResourceRequirements {
	allocated := c.Resources
	out := corev1.ResourceRequirements{Requests: maps.Clone(allocated.Requests), Limits: maps.Clone(allocated.Limits), Claims: allocated.Claims}
	replace := func(list *corev1.ResourceList, name corev1.ResourceName, q *resource.Quantity) {
		if q == nil {
			delete(*list, name)
			return
		}
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[name] = *q
	}
	if r.CpuShares > 0 && r.CpuShares != containerShares(p, c) {
		replace(&out.Requests, corev1.ResourceCPU, resource.NewMilliQuantity(r.CpuShares*1000/sharesPerCPU, resource.DecimalSI))
	}
	if quota, _ := Quota(limit(p, c, corev1.ResourceCPU)); max(r.CpuQuota, 0) != quota {
		var q *resource.Quantity
		if r.CpuQuota > 0 && r.CpuPeriod > 0 {
			q = resource.NewMilliQuantity(r.CpuQuota*1000/r.CpuPeriod, resource.DecimalSI)
		}
		replace(&out.Limits, corev1.ResourceCPU, q)
	}
	if max(r.MemoryLimitInBytes, 0) != limit(p, c, corev1.ResourceMemory).Value() {
		var q *resource.Quantity
		if r.MemoryLimitInBytes > 0 {
			q = resource.NewQuantity(r.MemoryLimitInBytes, resource.BinarySI)
		}
		replace(&out.Limits, corev1.ResourceMemory, q)
	}
	return out
}

// Larger returns the larger of two pods' resources, for the time between the steps of a
// resize. A limit that one of them does not have is none.
func Larger(a, b Total) Total {
	out := Total{Requests: corev1.ResourceList{}, Limits: corev1.ResourceList{}}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		x, y := a.Requests[name], b.Requests[name]
		if x.Cmp(y) < 0 {
			x = y
		}
		out.Requests[name] = x
		x, limited := a.Limits[name]
		y, both := b.Limits[name]
		if !limited || !both {
			continue
		}
		if x.Cmp(y) < 0 {
			x = y
		}
		out.Limits[name] = x
	}
	return out
}

package pod

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CPU shares and quotas in the units of cgroup v1, which CRI uses. Runtimes convert them
// for cgroup v2.
const (
	sharesPerCPU  = 1024
	minShares     = 2
	maxShares     = 262144
	quotaPeriod   = 100000 // µs
	minQuota      = 1000   // µs
	guaranteedAdj = -997
	bestEffortAdj = 1000
	// systemNodeCritical is the priority from which a pod is critical to the node.
	systemNodeCritical = 2000001000
)

// QOS returns a pod's quality-of-service class.
func QOS(p *corev1.Pod) corev1.PodQOSClass {
	if p.Status.QOSClass != "" {
		return p.Status.QOSClass
	}
	guaranteed, any := true, false
	check := func(r corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			if !request.IsZero() || !limit.IsZero() {
				any = true
			}
			if limit.IsZero() || (!request.IsZero() && request.Cmp(limit) != 0) {
				guaranteed = false
			}
		}
	}
	if p.Spec.Resources != nil && len(p.Spec.Resources.Requests)+len(p.Spec.Resources.Limits) > 0 {
		check(*p.Spec.Resources)
	} else {
		for role, c := range Containers(p) {
			if role != Ephemeral {
				check(c.Resources)
			}
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// Shares returns the cgroup v1 CPU shares for an amount of CPU.
func Shares(cpu *resource.Quantity) int64 { return SharesOf(cpu.MilliValue()) }

// SharesOf returns the CPU shares for m thousandths of a CPU.
func SharesOf(m int64) int64 {
	if m <= 0 {
		return minShares
	}
	return max(minShares, min(maxShares, m*sharesPerCPU/1000))
}

// cgroupResources converts resources for CRI's sandboxes.
func cgroupResources(t Total) *runtimev1.LinuxContainerResources {
	r := &runtimev1.LinuxContainerResources{CpuShares: Shares(t.Requests.Cpu()), MemoryLimitInBytes: t.Limits.Memory().Value()}
	r.CpuQuota, r.CpuPeriod = Quota(t.Limits.Cpu())
	return r
}

// Quota returns the CPU time per period for a limit, both in µs, or 0 and 0 without a
// limit.
func Quota(cpu *resource.Quantity) (quota, period int64) {
	m := cpu.MilliValue()
	if m <= 0 {
		return 0, 0
	}
	return max(minQuota, m*quotaPeriod/1000), quotaPeriod
}

// OOMScoreAdj returns a container's oom_score_adj, which determines how early the kernel
// kills its processes when memory runs out: last for guaranteed pods, and for burstable
// pods later the more memory they request. memoryCapacity is the node's, in bytes.
func OOMScoreAdj(p *corev1.Pod, c *corev1.Container, memoryCapacity int64) int64 {
	if p.Spec.Priority != nil && *p.Spec.Priority >= systemNodeCritical {
		return guaranteedAdj
	}
	switch QOS(p) {
	case corev1.PodQOSGuaranteed:
		return guaranteedAdj
	case corev1.PodQOSBestEffort:
		return bestEffortAdj
	}
	if memoryCapacity <= 0 {
		return bestEffortAdj - 1
	}
	request := memoryRequest(p, c)
	if IsSidecar(c) {
		// A sidecar is not killed before the containers that it serves.
		least := int64(-1)
		for i := range p.Spec.Containers {
			if r := memoryRequest(p, &p.Spec.Containers[i]); least < 0 || r < least {
				least = r
			}
		}
		request = max(request, least)
	}
	adj := 1000 - 1000*request/memoryCapacity
	return max(1000+guaranteedAdj, min(bestEffortAdj-1, adj))
}

// memoryRequest returns a container's request in bytes, including its share of what the pod
// requests as a whole beyond its containers (KEP-2837).
func memoryRequest(p *corev1.Pod, c *corev1.Container) int64 {
	own := c.Resources.Requests.Memory().Value()
	if p.Spec.Resources == nil || p.Spec.Resources.Requests.Memory().IsZero() {
		return own
	}
	var sum, n int64
	for role, o := range Containers(p) {
		if role == Regular || role == Sidecar {
			sum += o.Resources.Requests.Memory().Value()
			n++
		}
	}
	return own + max(0, p.Spec.Resources.Requests.Memory().Value()-sum)/max(n, 1)
}

// ContainerResources returns a container's resources for CRI. unified is true on a node
// with cgroup v2.
func ContainerResources(p *corev1.Pod, c *corev1.Container, memoryCapacity int64, unified bool) *runtimev1.LinuxContainerResources {
	r := &runtimev1.LinuxContainerResources{
		CpuShares:          containerShares(p, c),
		MemoryLimitInBytes: limit(p, c, corev1.ResourceMemory).Value(),
		OomScoreAdj:        OOMScoreAdj(p, c, memoryCapacity),
	}
	r.CpuQuota, r.CpuPeriod = Quota(limit(p, c, corev1.ResourceCPU))
	if unified {
		r.Unified = map[string]string{"memory.oom.group": "1"}
		r.MemorySwapLimitInBytes = r.MemoryLimitInBytes
	}
	return r
}

// limit returns a container's limit, or that of the whole pod if the container has none.
func limit(p *corev1.Pod, c *corev1.Container, name corev1.ResourceName) *resource.Quantity {
	q := c.Resources.Limits[name]
	if q.IsZero() && p.Spec.Resources != nil {
		q = p.Spec.Resources.Limits[name]
	}
	return &q
}

// containerShares returns a container's CPU shares, which follow from its request, or from
// its limit if it has no request.
func containerShares(p *corev1.Pod, c *corev1.Container) int64 {
	if q, ok := c.Resources.Requests[corev1.ResourceCPU]; ok {
		return Shares(&q)
	}
	return Shares(limit(p, c, corev1.ResourceCPU))
}

// request returns a request, or the limit if no request is set.
func request(r corev1.ResourceRequirements, name corev1.ResourceName) *resource.Quantity {
	if q, ok := r.Requests[name]; ok {
		return &q
	}
	q := r.Limits[name]
	return &q
}

// Total is what a whole pod may use: the larger of what its regular containers and sidecars
// use together and what initialization needs, plus overhead. A limit is present only if
// every container has one.
type Total struct {
	Requests, Limits corev1.ResourceList
}

// PodTotal computes the resources of a pod's cgroup.
func PodTotal(p *corev1.Pod) Total {
	t := containersTotal(p)
	for name, q := range p.Spec.Overhead {
		add(t.Requests, name, q)
		if _, limited := t.Limits[name]; limited {
			add(t.Limits, name, q)
		}
	}
	return t
}

func add(list corev1.ResourceList, name corev1.ResourceName, q resource.Quantity) {
	sum := list[name].DeepCopy()
	sum.Add(q)
	list[name] = sum
}

// containersTotal is PodTotal without the pod's overhead. Resources that the pod sets as a
// whole replace those of its containers.
func containersTotal(p *corev1.Pod) Total {
	t := Total{Requests: corev1.ResourceList{}, Limits: corev1.ResourceList{}}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		if q, ok := total(p, func(r corev1.ResourceRequirements) (resource.Quantity, bool) {
			return *request(r, name), true
		}); ok {
			t.Requests[name] = q
		}
		if q, ok := total(p, func(r corev1.ResourceRequirements) (resource.Quantity, bool) {
			q, ok := r.Limits[name]
			return q, ok
		}); ok && !q.IsZero() {
			t.Limits[name] = q
		}
		if pr := p.Spec.Resources; pr != nil {
			if q := *request(*pr, name); !q.IsZero() {
				t.Requests[name] = q
			}
			if q, ok := pr.Limits[name]; ok {
				t.Limits[name] = q
			}
		}
	}
	return t
}

// total aggregates one resource over a pod's containers. It returns false if a container
// has no value.
func total(p *corev1.Pod, value func(corev1.ResourceRequirements) (resource.Quantity, bool)) (resource.Quantity, bool) {
	var sum, sidecars, peak resource.Quantity
	for i := range p.Spec.Containers {
		q, ok := value(p.Spec.Containers[i].Resources)
		if !ok {
			return sum, false
		}
		sum.Add(q)
	}
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		q, ok := value(c.Resources)
		if !ok {
			return sum, false
		}
		if IsSidecar(c) {
			sidecars.Add(q)
			q = resource.Quantity{}
		}
		q.Add(sidecars)
		if q.Cmp(peak) > 0 {
			peak = q
		}
	}
	sum.Add(sidecars)
	if peak.Cmp(sum) > 0 {
		sum = peak
	}
	return sum, true
}

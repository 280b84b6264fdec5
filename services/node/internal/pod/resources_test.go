package pod

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// list parses CPU and memory amounts. An empty string leaves the resource out.
func list(cpu, memory string) corev1.ResourceList {
	out := corev1.ResourceList{}
	if cpu != "" {
		out[corev1.ResourceCPU] = resource.MustParse(cpu)
	}
	if memory != "" {
		out[corev1.ResourceMemory] = resource.MustParse(memory)
	}
	return out
}

func need(requests, limits corev1.ResourceList) corev1.ResourceRequirements {
	return corev1.ResourceRequirements{Requests: requests, Limits: limits}
}

func podOf(regular []corev1.ResourceRequirements, init []corev1.ResourceRequirements, sidecars int) *corev1.Pod {
	p := &corev1.Pod{}
	for _, r := range regular {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Resources: r})
	}
	always := corev1.ContainerRestartPolicyAlways
	for i, r := range init {
		c := corev1.Container{Resources: r}
		if i < sidecars {
			c.RestartPolicy = &always
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	return p
}

func TestQOS(t *testing.T) {
	full := need(list("1", "1Gi"), list("1", "1Gi"))
	for name, c := range map[string]struct {
		pod  *corev1.Pod
		want corev1.PodQOSClass
	}{
		"nothing":         {podOf([]corev1.ResourceRequirements{{}}, nil, 0), corev1.PodQOSBestEffort},
		"all equal":       {podOf([]corev1.ResourceRequirements{full, full}, nil, 0), corev1.PodQOSGuaranteed},
		"limits only":     {podOf([]corev1.ResourceRequirements{need(nil, list("1", "1Gi"))}, nil, 0), corev1.PodQOSGuaranteed},
		"one without":     {podOf([]corev1.ResourceRequirements{full, {}}, nil, 0), corev1.PodQOSBurstable},
		"cpu only":        {podOf([]corev1.ResourceRequirements{need(list("1", ""), list("1", ""))}, nil, 0), corev1.PodQOSBurstable},
		"request below":   {podOf([]corev1.ResourceRequirements{need(list("500m", "1Gi"), list("1", "1Gi"))}, nil, 0), corev1.PodQOSBurstable},
		"an init without": {podOf([]corev1.ResourceRequirements{full}, []corev1.ResourceRequirements{{}}, 0), corev1.PodQOSBurstable},
	} {
		if got := QOS(c.pod); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestPodTotal(t *testing.T) {
	one, two, none := need(list("1", "1Gi"), list("2", "2Gi")), need(list("2", "2Gi"), list("4", "4Gi")), corev1.ResourceRequirements{}
	for name, c := range map[string]struct {
		pod                              *corev1.Pod
		cpu, memory, cpuLimit, memoryMax string
	}{
		"sum":                   {podOf([]corev1.ResourceRequirements{one, two}, nil, 0), "3", "3Gi", "6", "6Gi"},
		"a larger init":         {podOf([]corev1.ResourceRequirements{one}, []corev1.ResourceRequirements{two}, 0), "2", "2Gi", "4", "4Gi"},
		"a smaller init":        {podOf([]corev1.ResourceRequirements{two}, []corev1.ResourceRequirements{one}, 0), "2", "2Gi", "4", "4Gi"},
		"a sidecar":             {podOf([]corev1.ResourceRequirements{one}, []corev1.ResourceRequirements{one}, 1), "2", "2Gi", "4", "4Gi"},
		"a sidecar and an init": {podOf([]corev1.ResourceRequirements{one}, []corev1.ResourceRequirements{one, two}, 1), "3", "3Gi", "6", "6Gi"},
		"one has no limit":      {podOf([]corev1.ResourceRequirements{one, none}, nil, 0), "1", "1Gi", "0", "0"},
	} {
		got := PodTotal(c.pod)
		for what, pair := range map[string][2]string{
			"cpu": {got.Requests.Cpu().String(), c.cpu}, "memory": {got.Requests.Memory().String(), c.memory},
			"cpu limit": {got.Limits.Cpu().String(), c.cpuLimit}, "memory limit": {got.Limits.Memory().String(), c.memoryMax},
		} {
			if pair[0] != pair[1] {
				t.Errorf("%s: %s is %s, want %s", name, what, pair[0], pair[1])
			}
		}
	}
}

// TestPodTotalWhole checks resources of the pod as a whole, and its overhead, which comes on
// top of both.
func TestPodTotalWhole(t *testing.T) {
	p := podOf([]corev1.ResourceRequirements{need(list("1", "1Gi"), nil)}, nil, 0)
	p.Spec.Overhead = list("100m", "64Mi")
	got := PodTotal(p)
	if got.Requests.Cpu().String() != "1100m" || got.Requests.Memory().String() != "1088Mi" || len(got.Limits) != 0 {
		t.Errorf("overhead without limits: %+v", got)
	}
	whole := need(list("2", ""), list("3", "2Gi"))
	p.Spec.Resources = &whole
	got = PodTotal(p)
	for what, pair := range map[string][2]string{
		"cpu": {got.Requests.Cpu().String(), "2100m"}, "memory": {got.Requests.Memory().String(), "2112Mi"},
		"cpu limit": {got.Limits.Cpu().String(), "3100m"}, "memory limit": {got.Limits.Memory().String(), "2112Mi"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %s, want %s", what, pair[0], pair[1])
		}
	}
	box := SandboxConfig(p, Settings{}, 0, "").Linux
	if box.Resources.MemoryLimitInBytes != 2<<30 || box.Overhead.MemoryLimitInBytes != 64<<20 || box.Overhead.CpuQuota != 10000 {
		t.Errorf("sandbox: %+v, overhead %+v", box.Resources, box.Overhead)
	}
}

func TestContainerResources(t *testing.T) {
	for name, c := range map[string]struct {
		r             corev1.ResourceRequirements
		shares, quota int64
		memory        int64
	}{
		"nothing":    {corev1.ResourceRequirements{}, 2, 0, 0},
		"request":    {need(list("100m", "64Mi"), nil), 102, 0, 0},
		"limit":      {need(nil, list("500m", "64Mi")), 512, 50000, 64 << 20},
		"tiny":       {need(nil, list("1m", "")), 2, 1000, 0},
		"enormous":   {need(list("1000", ""), nil), 262144, 0, 0},
		"both":       {need(list("250m", ""), list("1500m", "")), 256, 150000, 0},
		"a zero one": {need(list("0", ""), list("", "")), 2, 0, 0},
	} {
		p := podOf([]corev1.ResourceRequirements{c.r}, nil, 0)
		got := ContainerResources(p, &p.Spec.Containers[0], 8<<30, false)
		if got.CpuShares != c.shares || got.CpuQuota != c.quota || got.MemoryLimitInBytes != c.memory || (got.CpuPeriod != 0) != (c.quota != 0) {
			t.Errorf("%s: %+v", name, got)
		}
		if got.Unified != nil || got.MemorySwapLimitInBytes != 0 {
			t.Errorf("%s: cgroup v2 settings on cgroup v1: %+v", name, got)
		}
		if got := ContainerResources(p, &p.Spec.Containers[0], 8<<30, true); got.Unified["memory.oom.group"] != "1" || got.MemorySwapLimitInBytes != c.memory {
			t.Errorf("%s: v2: %+v", name, got)
		}
	}
}

// TestWholePodLimits checks that a container without limits is limited like its whole pod.
func TestWholePodLimits(t *testing.T) {
	p := podOf([]corev1.ResourceRequirements{{}, need(list("100m", ""), list("", "64Mi"))}, nil, 0)
	whole := need(list("500m", ""), list("1", "1Gi"))
	p.Spec.Resources = &whole
	if got := ContainerResources(p, &p.Spec.Containers[0], 8<<30, false); got.CpuShares != 1024 || got.CpuQuota != 100000 || got.MemoryLimitInBytes != 1<<30 {
		t.Errorf("without limits: %+v", got)
	}
	if got := ContainerResources(p, &p.Spec.Containers[1], 8<<30, false); got.CpuShares != 102 || got.CpuQuota != 100000 || got.MemoryLimitInBytes != 64<<20 {
		t.Errorf("with a limit on memory: %+v", got)
	}
}

func TestOOMScoreAdj(t *testing.T) {
	const capacity = 8 << 30
	critical := int32(2000001000)
	for name, c := range map[string]struct {
		r        corev1.ResourceRequirements
		priority *int32
		want     int64
	}{
		"best effort":            {corev1.ResourceRequirements{}, nil, 1000},
		"guaranteed":             {need(list("1", "1Gi"), list("1", "1Gi")), nil, -997},
		"half":                   {need(list("", "4Gi"), nil), nil, 500},
		"almost all":             {need(list("", "8Gi"), nil), nil, 3},
		"almost nothing":         {need(list("", "1Mi"), nil), nil, 999},
		"cpu only":               {need(list("1", ""), nil), nil, 999},
		"node-critical":          {corev1.ResourceRequirements{}, &critical, -997},
		"more than the node has": {need(list("", "100Gi"), nil), nil, 3},
	} {
		p := podOf([]corev1.ResourceRequirements{c.r}, nil, 0)
		p.Spec.Priority = c.priority
		if got := OOMScoreAdj(p, &p.Spec.Containers[0], capacity); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	p := podOf([]corev1.ResourceRequirements{need(list("", "1Gi"), nil), need(list("", "2Gi"), nil)}, []corev1.ResourceRequirements{{}}, 1)
	if got := OOMScoreAdj(p, &p.Spec.InitContainers[0], capacity); got != 875 {
		t.Errorf("a sidecar without a request: %d, want that of the smallest container, 875", got)
	}
	p.Spec.InitContainers = nil
	whole := need(list("", "5Gi"), nil)
	p.Spec.Resources = &whole
	if got := OOMScoreAdj(p, &p.Spec.Containers[0], capacity); got != 750 {
		t.Errorf("with half of the 2 GiB that the pod requests beyond its containers: %d, want 750", got)
	}
}

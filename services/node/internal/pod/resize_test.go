package pod

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
)

func resizable(name string, requests, limits corev1.ResourceList) *corev1.Pod {
	p := podOf([]corev1.ResourceRequirements{need(requests, limits)}, nil, 0)
	p.UID, p.Spec.Containers[0].Name = types.UID(name), "c"
	return p
}

// TestRecorded checks what a restarted agent takes for allocated.
func TestRecorded(t *testing.T) {
	p := resizable("p", list("2", "2Gi"), list("4", "4Gi"))
	if got := Recorded(p); !got.Equal(Desired(p)) {
		t.Errorf("without a status: %+v", got)
	}
	old := need(list("1", "1Gi"), list("2", "2Gi"))
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", AllocatedResources: old.Requests, Resources: &old}}
	got := Recorded(p)
	if got.Equal(Desired(p)) || str(got.Containers["c"].Requests, corev1.ResourceCPU) != "1" || str(got.Containers["c"].Limits, corev1.ResourceMemory) != "2Gi" {
		t.Errorf("a pending resize: %+v", got)
	}
	applied := got.Apply(p)
	if applied == p || applied.Spec.Containers[0].Resources.Requests.Cpu().String() != "1" || p.Spec.Containers[0].Resources.Requests.Cpu().String() != "2" {
		t.Error("Apply did not make a pod of its own with the allocated resources")
	}
	// The requests have been allocated, and the limits are on their way.
	p.Status.ContainerStatuses[0].AllocatedResources = list("2", "2Gi")
	if got := Recorded(p); !got.Equal(Desired(p)) || got.Apply(p) != p {
		t.Errorf("an allocated resize: %+v", got)
	}
}

func TestAdmitResize(t *testing.T) {
	node := &corev1.Node{Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("8Gi"), corev1.ResourcePods: resource.MustParse("10"),
	}}}
	other := resizable("o", list("2", "1Gi"), nil)
	for _, c := range []struct {
		cpu, memory, reason, message string
	}{
		{"2", "7Gi", "", ""},
		{"3", "1Gi", "Deferred", "Node didn't have enough resource: cpu, requested: 3000, used: 2000, capacity: 4000"},
		{"5", "1Gi", "Infeasible", "Node didn't have enough capacity: cpu, requested: 5000, capacity: 4000"},
		{"1", "8Gi", "Deferred", "Node didn't have enough resource: memory, requested: 8589934592, used: 1073741824, capacity: 8589934592"},
	} {
		got := AdmitResize(resizable("p", list(c.cpu, c.memory), nil), node, []*corev1.Pod{other})
		if c.reason == "" && got != nil || c.reason != "" && (got == nil || got.Reason != c.reason || got.Message != c.message) {
			t.Errorf("%s CPU, %s: %+v, want %s: %s", c.cpu, c.memory, got, c.reason, c.message)
		}
	}
	if got := AdmitResize(resizable("p", list("100", ""), nil), nil, nil); got != nil {
		t.Errorf("on an unknown node: %+v", got)
	}
}

func TestPlanResize(t *testing.T) {
	p := podOf([]corev1.ResourceRequirements{
		need(list("1", "1Gi"), list("2", "2Gi")), need(list("1", "1Gi"), list("1", "1Gi")), need(list("1", ""), nil),
	}, nil, 0)
	state := &cri.Pod{Sandboxes: []cri.Sandbox{{ID: "box", Ready: true}}}
	actual := map[string]*runtimev1.LinuxContainerResources{}
	for i, name := range []string{"grows", "shrinks", "loses-limits"} {
		p.Spec.Containers[i].Name = name
		state.Containers = append(state.Containers, cri.Container{ID: name, Name: name, SandboxID: "box", State: cri.StateRunning})
		actual[name] = ContainerResources(p, &p.Spec.Containers[i], 8<<30, false)
	}
	plan := func() (out []string) {
		for _, r := range PlanResize(p, state, Settings{MemoryCapacity: 8 << 30}, func(c *cri.Container) *runtimev1.LinuxContainerResources { return actual[c.ID] }) {
			out = append(out, fmt.Sprintf("%s %d/%d/%d restart=%v", r.Container.Name, r.To.CpuShares, r.To.CpuQuota, r.To.MemoryLimitInBytes, r.Restart))
		}
		return out
	}
	if got := plan(); len(got) != 0 {
		t.Errorf("nothing has changed: %q", got)
	}
	actual["grows"].MemoryLimitInBytes = 1 << 30
	actual["shrinks"].MemoryLimitInBytes = 4 << 30
	actual["loses-limits"].CpuQuota, actual["loses-limits"].MemoryLimitInBytes = 50000, 1<<30
	want := []string{"shrinks 1024/100000/1073741824 restart=false", "grows 1024/200000/2147483648 restart=false", "loses-limits 1024/-1/-1 restart=false"}
	if got := plan(); strings.Join(got, "; ") != strings.Join(want, "; ") {
		t.Errorf("%q, want %q", got, want)
	}
	p.Spec.Containers[0].ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer}}
	p.Spec.Containers[1].ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceCPU, RestartPolicy: corev1.RestartContainer}}
	if got := plan(); !strings.HasSuffix(got[0], "restart=false") || !strings.HasSuffix(got[1], "restart=true") {
		t.Errorf("restarts: %q", got)
	}
	delete(actual, "grows")
	if got := plan(); !strings.HasSuffix(got[1]+got[0], "restart=false") {
		t.Errorf("unknown resources restart a container: %q", got)
	}
	state.Containers[1].State = cri.StateExited
	if got := plan(); len(got) != 2 {
		t.Errorf("an ended container is resized: %q", got)
	}
}

func TestLarger(t *testing.T) {
	a := Total{Requests: list("1", "2Gi"), Limits: list("2", "2Gi")}
	b := Total{Requests: list("2", "1Gi"), Limits: list("1", "")}
	got := Larger(a, b)
	if got.Requests.Cpu().String() != "2" || got.Requests.Memory().String() != "2Gi" || got.Limits.Cpu().String() != "2" || !got.Limits.Memory().IsZero() {
		t.Errorf("%+v", got)
	}
}

func TestActual(t *testing.T) {
	p := resizable("p", list("1", "1Gi"), list("2", "2Gi"))
	c := &p.Spec.Containers[0]
	r := &runtimev1.LinuxContainerResources{CpuShares: 1024, CpuQuota: 200000, CpuPeriod: 100000, MemoryLimitInBytes: 2 << 30}
	if got := Actual(p, c, r); got.Requests.Cpu().String() != "1" || got.Limits.Cpu().String() != "2" || got.Limits.Memory().String() != "2Gi" {
		t.Errorf("equal: %+v", got)
	}
	r = &runtimev1.LinuxContainerResources{CpuShares: 512, CpuQuota: 100000, CpuPeriod: 100000, MemoryLimitInBytes: -1}
	got := Actual(p, c, r)
	if _, limited := got.Limits[corev1.ResourceMemory]; limited || got.Requests.Cpu().String() != "500m" || got.Limits.Cpu().String() != "1" || got.Requests.Memory().String() != "1Gi" {
		t.Errorf("different: %+v", got)
	}
	if c.Resources.Requests.Cpu().String() != "1" {
		t.Error("the allocated resources were changed")
	}
	// A limit of the whole pod, which the container has because it has none of its own, is
	// not reported as its own.
	whole := need(nil, list("1", "1Gi"))
	p.Spec.Resources, c.Resources = &whole, corev1.ResourceRequirements{}
	if got := Actual(p, c, ContainerResources(p, c, 8<<30, false)); len(got.Limits)+len(got.Requests) != 0 {
		t.Errorf("the pod's limits: %+v", got)
	}
}

func str(list corev1.ResourceList, name corev1.ResourceName) string {
	q := list[name]
	return q.String()
}

package agent

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func amounts(cpu, memory string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
}

func conditionOf(p *corev1.Pod, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == kind {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

// resizes changes the resources of a pod's first container.
func (r *rig) resizes(p *corev1.Pod, requests, limits corev1.ResourceList) {
	r.t.Helper()
	r.update(p, func(p *corev1.Pod) {
		p.Generation++
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: requests, Limits: limits}
	})
}

// limits returns the memory limit in bytes and the CPU quota in µs of a pod's cgroup and of
// its container's.
func (r *rig) limits(p *corev1.Pod) string {
	r.t.Helper()
	base, memory, cpu := "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "cpu.cfs_quota_us"
	cpuBase := "/sys/fs/cgroup/cpu"
	group := r.agent.cfg.Cgroups.Pod(p)
	if r.agent.cfg.Cgroups.Unified() {
		base, memory, cpu, cpuBase = "/sys/fs/cgroup", "memory.max", "cpu.max", "/sys/fs/cgroup"
	}
	var out []string
	for _, g := range []string{group, filepath.Join(group, r.state(p).Latest("main").ID)} {
		quota, _, _ := strings.Cut(readFile(r.t, filepath.Join(cpuBase, g, cpu)), " ")
		out = append(out, strings.TrimSpace(readFile(r.t, filepath.Join(base, g, memory)))+"/"+strings.TrimSpace(quota))
	}
	return strings.Join(out, " ")
}

// TestResize checks an in-place resize up and down: the cgroups of the pod and of its
// container follow, the status reports it, and the container is not restarted. A restarted
// agent changes nothing.
func TestResize(t *testing.T) {
	r := newRig(t)
	p := simple("resized", forever)
	p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: amounts("100m", "64Mi"), Limits: amounts("200m", "128Mi")}
	p = r.awaitReady(r.create(p))
	id := containerStatus(p, "main").ContainerID
	if got := r.limits(p); got != "134217728/20000 134217728/20000" {
		t.Errorf("at first: %s", got)
	}
	done := func(cpu, limit string) func(*corev1.Pod) bool {
		return func(p *corev1.Pod) bool {
			st := containerStatus(p, "main")
			return st.AllocatedResources.Cpu().String() == cpu && st.Resources.Limits.Memory().String() == limit &&
				conditionOf(p, corev1.PodResizeInProgress) == nil && conditionOf(p, corev1.PodResizePending) == nil
		}
	}
	r.resizes(p, amounts("300m", "64Mi"), amounts("500m", "256Mi"))
	p = r.await(p, "has grown", done("300m", "256Mi"))
	if got := r.limits(p); got != "268435456/50000 268435456/50000" {
		t.Errorf("after growing: %s", got)
	}
	r.resizes(p, amounts("50m", "32Mi"), amounts("100m", "96Mi"))
	p = r.await(p, "has shrunk", done("50m", "96Mi"))
	if got := r.limits(p); got != "100663296/10000 100663296/10000" {
		t.Errorf("after shrinking: %s", got)
	}
	for _, reason := range []string{"ResizeStarted", "ResizeCompleted"} {
		r.until("event "+reason, time.Minute, func() bool { return r.hasEvent(p, reason) })
	}
	r.stop()
	r.start()
	r.resizes(p, amounts("50m", "32Mi"), amounts("150m", "96Mi"))
	r.until("the new agent has resized the container", time.Minute, func() bool { return r.limits(p) == "100663296/15000 100663296/15000" })
	if now := containerStatus(r.get(p), "main"); now.ContainerID != id || now.RestartCount != 0 {
		t.Errorf("container %s became %s, %d restarts", id, now.ContainerID, now.RestartCount)
	}
}

// TestResizeRestarts checks that a container whose policy says so is restarted for a resize,
// at once and with its new resources.
func TestResizeRestarts(t *testing.T) {
	r := newRig(t)
	p := simple("restarting", forever)
	p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: amounts("100m", "64Mi"), Limits: amounts("200m", "128Mi")}
	p.Spec.Containers[0].ResizePolicy = []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer}}
	p = r.awaitReady(r.create(p))
	r.resizes(p, amounts("100m", "64Mi"), amounts("300m", "128Mi"))
	r.until("the CPU limit has changed", time.Minute, func() bool { return r.limits(p) == "134217728/30000 134217728/30000" })
	r.resizes(p, amounts("100m", "64Mi"), amounts("300m", "256Mi"))
	p = r.await(p, "is restarted", func(p *corev1.Pod) bool {
		st := containerStatus(p, "main")
		return st.RestartCount == 1 && st.State.Running != nil && ready(p) && conditionOf(p, corev1.PodResizeInProgress) == nil
	})
	if got := r.limits(p); got != "268435456/30000 268435456/30000" {
		t.Errorf("after the restart: %s", got)
	}
}

// TestResizeRefused checks a resize that the node is too small for, one that waits until
// another pod has ended, and one below what is in use.
func TestResizeRefused(t *testing.T) {
	r := newRig(t)
	r.allocatable = amounts("2", "8Gi")
	guaranteed := func(name, cpu string) *corev1.Pod {
		p := simple(name, forever)
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: amounts(cpu, "64Mi"), Limits: amounts(cpu, "64Mi")}
		return r.create(p)
	}
	p, other := guaranteed("patient", "500m"), guaranteed("other", "1")
	p, other = r.awaitReady(p), r.awaitReady(other)
	pending := func(reason, message string) func(*corev1.Pod) bool {
		return func(p *corev1.Pod) bool {
			c := conditionOf(p, corev1.PodResizePending)
			return c != nil && c.Reason == reason && strings.Contains(c.Message, message) && allocatedCPU(p) == "500m"
		}
	}
	r.resizes(p, amounts("3", "64Mi"), amounts("3", "64Mi"))
	r.await(p, "cannot be resized", pending("Infeasible", "Node didn't have enough capacity: cpu, requested: 3000, capacity: 2000"))
	r.resizes(p, amounts("1500m", "64Mi"), amounts("1500m", "64Mi"))
	r.await(p, "waits for its resize", pending("Deferred", "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000"))
	if got := r.limits(p); got != "67108864/50000 67108864/50000" {
		t.Errorf("while it waits: %s", got)
	}
	r.delete(other)
	r.await(p, "is resized", func(p *corev1.Pod) bool {
		return conditionOf(p, corev1.PodResizePending) == nil && allocatedCPU(p) == "1500m"
	})

	hog := simple("hog", "head -c 40000000 /dev/zero >/dev/shm/hog; touch /tmp/up; "+forever)
	hog.Spec.Containers[0].Resources = corev1.ResourceRequirements{Requests: amounts("10m", "16Mi"), Limits: amounts("100m", "128Mi")}
	hog = r.awaitReady(r.create(hog))
	r.awaitFile(hog, "main", "/tmp/up")
	r.resizes(hog, amounts("10m", "16Mi"), amounts("100m", "20Mi"))
	r.await(hog, "fails to shrink", func(p *corev1.Pod) bool {
		c := conditionOf(p, corev1.PodResizeInProgress)
		return c != nil && c.Reason == "Error" && strings.Contains(c.Message, "below current usage") && containerStatus(p, "main").Resources.Limits.Memory().String() != ""
	})
	if got := r.limits(hog); got != "134217728/10000 134217728/10000" {
		t.Errorf("a limit below what is in use: %s", got)
	}
	r.resizes(hog, amounts("10m", "16Mi"), amounts("100m", "256Mi"))
	r.await(hog, "grows instead", func(p *corev1.Pod) bool { return conditionOf(p, corev1.PodResizeInProgress) == nil })
	if now := containerStatus(r.get(hog), "main"); now.RestartCount != 0 {
		t.Errorf("%d restarts", now.RestartCount)
	}
}

func allocatedCPU(p *corev1.Pod) string {
	q := containerStatus(p, "main").AllocatedResources[corev1.ResourceCPU]
	return q.String()
}

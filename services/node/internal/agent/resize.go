package agent

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/pod"
	"keelson.dev/services/node/internal/status"
)

// resizing is a worker's state of its pod's in-place resize. It belongs to the worker's
// goroutine.
type resizing struct {
	// allocated is what the node has promised; known is true once it is set.
	allocated pod.Allocation
	known     bool
	state     status.Resize
	// applied holds the resources that containers were created with or updated to, by ID.
	applied map[string]*runtimev1.LinuxContainerResources
	// replaced holds the IDs of instances that were stopped to be resized.
	replaced map[string]bool
	// cgroup is what the pod's cgroup was last set to, if this agent set it.
	cgroup *pod.Total
	retry  time.Time
}

// resizeRetry is the delay before a resize that failed is tried again.
const resizeRetry = 10 * time.Second

// allot allocates the resources that the pod desires, if they fit, and returns the pod with
// its allocated resources.
func (w *worker) allot(p *corev1.Pod) *corev1.Pod {
	if !w.resize.known {
		w.resize.known = true
		w.resize.allocated = pod.Recorded(p)
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodResizeInProgress && c.Status == corev1.ConditionTrue {
				w.resize.state.Active = true
			}
		}
		w.a.allocate(w.resize.allocated.Apply(p))
	}
	desired := pod.Desired(p)
	if desired.Equal(w.resize.allocated) {
		w.resize.state.Pending = nil
		return p
	}
	if ending(p) || w.ended != nil || w.refused != nil || w.finished {
		return w.resize.allocated.Apply(p)
	}
	refusal := w.a.admitResize(p)
	if refusal == nil {
		w.resize.allocated = desired
		w.resize.state = status.Resize{Active: true}
		w.resize.retry = time.Time{}
		w.a.cfg.Events.Pod(p, "", corev1.EventTypeNormal, event.ResizeStarted, "%s", pod.ResizeSummary("Pod resize started", p, ""))
		return p
	}
	if before := w.resize.state.Pending; before == nil || before.Reason != refusal.Reason {
		reason := event.ResizeDeferred
		if refusal.Reason == corev1.PodReasonInfeasible {
			reason = event.ResizeInfeasible
		}
		w.a.cfg.Events.Pod(p, "", corev1.EventTypeWarning, reason, "%s", pod.ResizeSummary("Pod resize "+refusal.Reason, p, refusal.Message))
	}
	w.resize.state.Pending = refusal
	return w.resize.allocated.Apply(p)
}

// allocate records the resources of an admitted pod, if it is one.
func (a *Agent) allocate(p *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.admitted[p.UID] != nil {
		a.admitted[p.UID] = p
	}
}

// admitResize allocates a pod's desired resources, or returns why they do not fit. A pod
// that has to wait is woken when another gives up resources.
func (a *Agent) admitResize(p *corev1.Pod) *pod.Refusal {
	a.mu.Lock()
	defer a.mu.Unlock()
	others := make([]*corev1.Pod, 0, len(a.admitted))
	for uid, o := range a.admitted {
		if uid != p.UID {
			others = append(others, o)
		}
	}
	var node *corev1.Node
	if a.cfg.Self != nil {
		node = a.cfg.Self()
	}
	delete(a.deferred, p.UID)
	if r := pod.AdmitResize(p, node, others); r != nil {
		if r.Reason == corev1.PodReasonDeferred {
			a.deferred[p.UID] = true
		}
		return r
	}
	a.admitted[p.UID] = p
	a.wakeDeferred()
	return nil
}

// wakeDeferred wakes the pods whose resize waits for resources. The lock is held.
func (a *Agent) wakeDeferred() {
	for uid := range a.deferred {
		if w := a.workers[uid]; w != nil {
			w.poke()
		}
	}
}

// actual returns the resources that an instance has, as far as they are known. If nothing
// says that a resize was interrupted, an instance of an earlier agent whose runtime reports
// no resources has the allocated ones.
func (w *worker) actual(p *corev1.Pod) func(*cri.Container) *runtimev1.LinuxContainerResources {
	return func(c *cri.Container) *runtimev1.LinuxContainerResources {
		if r := w.resize.applied[c.ID]; r != nil {
			return r
		}
		if c.Resources != nil || w.resize.state.Active {
			return c.Resources
		}
		spec, _ := pod.Find(p, c.Name)
		return pod.ContainerResources(p, spec, w.a.cfg.Settings.MemoryCapacity, w.a.cfg.Settings.Unified)
	}
}

// resizeContainers gives running containers their allocated resources. changed is true if
// one was stopped for that. The pod's cgroup grows before its containers and shrinks after
// them, so that it never limits them more than either state does.
func (w *worker) resizeContainers(ctx context.Context, p *corev1.Pod, state *cri.Pod, at *wakeTimes) (changed bool) {
	if wait := time.Until(w.resize.retry); wait > 0 {
		at.add(w.resize.retry)
		return false
	}
	plan := pod.PlanResize(p, state, w.a.cfg.Settings, w.actual(p))
	if len(plan) == 0 && !w.resize.state.Active {
		return false
	}
	before := w.resize.state
	w.resize.state.Active = true
	changed, err := w.applyResize(ctx, p, plan)
	if ctx.Err() != nil {
		return changed
	}
	if err != nil {
		w.resize.state.Error = cri.Message(err)
		w.resize.retry = time.Now().Add(resizeRetry)
		at.add(w.resize.retry)
		if before.Error != w.resize.state.Error {
			w.a.cfg.Events.Pod(p, "", corev1.EventTypeWarning, event.ResizeError, "%s", pod.ResizeSummary("Pod resize error", p, w.resize.state.Error))
		}
		at.add(time.Now()) // reports the error
		return changed
	}
	w.resize.state.Error = ""
	if !changed {
		w.resize.state.Active = false
		w.a.cfg.Events.Pod(p, "", corev1.EventTypeNormal, event.ResizeCompleted, "%s", pod.ResizeSummary("Pod resize completed", p, ""))
	}
	at.add(time.Now()) // reports the new state
	return changed
}

func (w *worker) applyResize(ctx context.Context, p *corev1.Pod, plan []pod.Resize) (changed bool, err error) {
	total := pod.PodTotal(p)
	if w.a.cfg.Cgroups != nil {
		if err := w.checkUsage(p, plan, total); err != nil {
			return false, err
		}
		grown := total
		if w.resize.cgroup != nil {
			grown = pod.Larger(total, *w.resize.cgroup)
		}
		if err := w.a.cfg.Cgroups.SetPod(p, grown); err != nil {
			return false, err
		}
		w.resize.cgroup = &grown
	}
	var all []error
	for _, r := range plan {
		if r.Restart {
			w.resize.replaced[r.Container.ID] = true
			w.killOne(ctx, p, pod.Kill{Container: r.Container, Why: pod.KillResize})
			changed = true
			continue
		}
		if err := w.a.cfg.Runtime.UpdateContainerResources(ctx, r.Container.ID, r.To); err != nil {
			all = append(all, fmt.Errorf("container %s: %w", r.Container.Name, err))
			continue
		}
		w.resize.applied[r.Container.ID] = r.To
	}
	if err := errors.Join(all...); err != nil || changed {
		return changed, err
	}
	if w.a.cfg.Cgroups != nil {
		if err := w.a.cfg.Cgroups.SetPod(p, total); err != nil {
			return false, err
		}
		w.resize.cgroup = &total
		w.a.shareCPU(ctx)
	}
	return false, nil
}

// checkUsage returns an error if a memory limit would be set below what is in use: the
// kernel would kill a process, or refuse the limit.
func (w *worker) checkUsage(p *corev1.Pod, plan []pod.Resize, total pod.Total) error {
	var all []error
	shrinks := false
	for _, r := range plan {
		if !r.Shrinks() || r.Restart {
			continue
		}
		shrinks = true
		m, err := w.a.cfg.Cgroups.Memory(path.Join(w.a.cfg.Cgroups.Pod(p), r.Container.ID))
		switch {
		case err != nil:
			all = append(all, fmt.Errorf("read the memory usage of container %q: %w", r.Container.Name, err))
		case m.Usage >= uint64(r.To.MemoryLimitInBytes):
			all = append(all, fmt.Errorf("attempting to set container %q memory limit (%d) below current usage (%d)", r.Container.Name, r.To.MemoryLimitInBytes, m.Usage))
		}
	}
	if limit := total.Limits.Memory().Value(); shrinks && limit > 0 {
		m, err := w.a.cfg.Cgroups.Memory(w.a.cfg.Cgroups.Pod(p))
		switch {
		case err != nil:
			all = append(all, fmt.Errorf("read the memory usage of the pod: %w", err))
		case m.Usage >= uint64(limit):
			all = append(all, fmt.Errorf("attempting to set pod memory limit (%d) below current usage (%d)", limit, m.Usage))
		}
	}
	return errors.Join(all...)
}

// undefer forgets a pod that waited for resources.
func (a *Agent) undefer(uid types.UID) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.deferred, uid)
}

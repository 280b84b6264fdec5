package agent

import (
	"context"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/pod"
)

const (
	// minGrace is the minimum time between a container's stop signal and SIGKILL,
	// regardless of the grace period and of how much of it a preStop hook or a sidecar's
	// wait has used up, unless the node ends the pod with a shorter grace period of its own.
	// It is the kubelet's minimumGracePeriodInSeconds.
	minGrace = 2 * time.Second
	// minPodGrace is the minimum grace period of a pod: preStop hooks run even if the pod
	// was deleted with a grace period of zero.
	minPodGrace = time.Second
)

// killing is the shutdown of all of a pod's containers. It runs in the background while the
// worker keeps reporting status.
type killing struct {
	grace  time.Duration
	cancel context.CancelFunc
	done   chan struct{}
}

func (k *killing) over() bool {
	select {
	case <-k.done:
		return true
	default:
		return false
	}
}

// graceOf returns a pod's grace period in seconds: the time its containers have between
// SIGTERM and SIGKILL.
func graceOf(p *corev1.Pod) int64 {
	switch {
	case p.DeletionGracePeriodSeconds != nil:
		return *p.DeletionGracePeriodSeconds
	case p.Spec.TerminationGracePeriodSeconds != nil:
		return *p.Spec.TerminationGracePeriodSeconds
	}
	return 30
}

// end stops a pod's containers, releases its network, volumes and cgroup, and, if the pod
// is being deleted, removes its object.
func (w *worker) end(ctx context.Context, p *corev1.Pod, state *cri.Pod, traceparent string) time.Duration {
	w.a.probes.Sync(w.a.base, p, state, podIP(p, state, w.a.cfg.HostIPs()), true)
	w.publish(p, state, w.a.probes.Verdicts(w.uid), nil, traceparent)
	if wait, running := w.endContainers(ctx, p, state); running {
		return wait
	}
	if w.cleaned {
		if p.DeletionTimestamp != nil {
			w.a.writer.Remove(p, traceparent)
		}
		return resync
	}
	if wait := time.Until(w.clean.until); wait > 0 {
		return wait
	}
	if err := w.cleanUp(ctx, p, state); err != nil {
		if ctx.Err() == nil {
			w.a.log.WarnContext(ctx, "pod was not cleaned up", "pod", pod.Key(p), "error", cri.Message(err))
			w.clean.fail(200*time.Millisecond, 10*time.Second)
		}
		return max(w.clean.delay, time.Millisecond)
	}
	w.clean.ok()
	w.cleaned = true
	w.finished = true
	w.release()
	w.releaseDevices()
	w.a.dismiss(w.uid)
	// Publish the final status, which shows how every container ended.
	state, err := w.a.cfg.Runtime.Pod(ctx, string(w.uid))
	if err != nil {
		return runtimeRetry
	}
	w.publish(p, state, w.a.probes.Verdicts(w.uid), nil, traceparent)
	if p.DeletionTimestamp != nil {
		w.a.writer.Remove(p, traceparent)
	}
	return resync
}

// endContainers stops the running containers in the background. running is true while any
// container still runs; wait is when to look again at the latest.
func (w *worker) endContainers(ctx context.Context, p *corev1.Pod, state *cri.Pod) (wait time.Duration, running bool) {
	alive := state.Running()
	if len(alive) == 0 && (w.kill == nil || w.kill.over()) {
		w.kill = nil
		return 0, false
	}
	grace := w.graceNow(p)
	least := minGrace
	if w.ended != nil && w.ended.Grace != nil {
		grace = min(grace, *w.ended.Grace)
		least = min(least, max(grace, minPodGrace)) // the node is in a hurry
	}
	if w.kill != nil && !w.kill.over() {
		if grace >= w.kill.grace {
			return resync, true
		}
		w.stopKilling()
	}
	if err := w.recordGrace(); err != nil {
		w.a.log.WarnContext(ctx, "grace period was not recorded: after a restart of the agent the pod has its own", "pod", w.name(p), "error", err)
	}
	killCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	k := &killing{grace: grace, cancel: cancel, done: make(chan struct{})}
	w.kill = k
	record := w.ended != nil
	go func() {
		defer close(k.done)
		defer cancel()
		if record {
			w.recorded(killCtx)
		}
		w.a.killPod(killCtx, p, state, grace, least)
		w.poke()
	}()
	return runtimeRetry, true
}

// graceNow is the grace period of a pod that ends now. A pod whose object has disappeared while
// it ran was deleted with a grace period of 0, or its node was: only then does the API not wait
// for the node. Its last object does not show that, and the next pod of its name may already
// wait for its volumes. A static pod's object is its manifest, which disappears in every case.
func (w *worker) graceNow(p *corev1.Pod) time.Duration {
	w.mu.Lock()
	gone := w.gone
	w.mu.Unlock()
	if p == nil || gone && !pod.IsStaticUID(w.uid) {
		return minPodGrace
	}
	return time.Duration(graceOf(p)) * time.Second
}

// stopKilling stops waiting for containers to end. A stop that the runtime has begun
// continues.
func (w *worker) stopKilling() {
	if w.kill == nil {
		return
	}
	w.kill.cancel()
	<-w.kill.done
	w.kill = nil
}

// killPod stops all containers of a pod within the grace period, but leaves each at least
// the time least between its stop signal and SIGKILL. All preStop hooks start at once; a
// sidecar's stop signal waits until the containers that it serves have ended (KEP-753).
func (a *Agent) killPod(ctx context.Context, p *corev1.Pod, state *cri.Pod, grace, least time.Duration) {
	grace = max(grace, minPodGrace)
	running := state.Running()
	order := newStopOrder(p, running)
	var wg sync.WaitGroup
	for _, c := range running {
		wg.Go(func() {
			defer order.ended(c.Name)
			a.killContainer(ctx, p, state, c, grace, least, "Stopping container "+c.Name, order)
		})
	}
	wg.Wait()
}

// stopOrder makes sidecars wait for the containers that must end before them.
type stopOrder struct {
	// after maps a sidecar to the containers that it waits for.
	after map[string][]string

	mu   sync.Mutex
	left map[string]int // counts instances that have not ended
	gone map[string]chan struct{}
}

// newStopOrder returns the order in which running containers get their stop signals: a
// sidecar's comes after all regular containers and the next sidecar in the spec have ended.
// p may be nil; then no container waits.
func newStopOrder(p *corev1.Pod, running []*cri.Container) *stopOrder {
	o := &stopOrder{after: map[string][]string{}, left: map[string]int{}, gone: map[string]chan struct{}{}}
	for _, c := range running {
		if o.left[c.Name]++; o.gone[c.Name] == nil {
			o.gone[c.Name] = make(chan struct{})
		}
	}
	if p == nil {
		return o
	}
	var before []string
	for i := range p.Spec.Containers {
		before = append(before, p.Spec.Containers[i].Name)
	}
	for i := len(p.Spec.InitContainers) - 1; i >= 0; i-- {
		c := &p.Spec.InitContainers[i]
		if pod.IsSidecar(c) {
			o.after[c.Name] = slices.Clone(before)
			before = append(before, c.Name)
		}
	}
	return o
}

// ended records that an instance of a container has ended.
func (o *stopOrder) ended(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.left[name]--; o.left[name] == 0 {
		close(o.gone[name])
	}
}

// wait waits for a container's turn, but not past the deadline.
func (o *stopOrder) wait(ctx context.Context, name string, deadline time.Time) {
	if o == nil || len(o.after[name]) == 0 {
		return
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	for _, other := range o.after[name] {
		gone := o.gone[other]
		if gone == nil {
			continue // it did not run
		}
		select {
		case <-gone:
		case <-ctx.Done():
			return
		}
	}
}

// killContainer stops one container. It runs the preStop hook, waits for the container's
// turn in order, sends the stop signal, and lets the runtime send SIGKILL when the grace
// period is over. order may be nil.
func (a *Agent) killContainer(ctx context.Context, p *corev1.Pod, state *cri.Pod, c *cri.Container, grace, least time.Duration, message string, order *stopOrder) {
	deadline := time.Now().Add(grace)
	log := a.log
	var spec *corev1.Container
	if p != nil {
		log = log.With("pod", pod.Key(p))
		spec, _ = pod.Find(p, c.Name)
		a.cfg.Events.Pod(p, c.Name, corev1.EventTypeNormal, event.Killing, "%s", message)
		var span trace.Span
		ctx, span = tracer.Start(ctx, "stop container "+c.Name, trace.WithAttributes(append(podAttributes(p), attribute.String("k8s.container.name", c.Name))...))
		defer span.End()
	}
	if grace > 0 && spec != nil && spec.Lifecycle != nil && spec.Lifecycle.PreStop != nil {
		a.preStop(ctx, p, spec, c.ID, podIP(p, state, a.cfg.HostIPs()), grace)
	}
	order.wait(ctx, c.Name, deadline)
	for ctx.Err() == nil {
		err := a.cfg.Runtime.StopContainer(ctx, c.ID, max(least, time.Until(deadline)))
		if err == nil {
			return
		}
		if ctx.Err() == nil && !cri.Down(err) {
			log.WarnContext(ctx, "container was not stopped", "container", c.Name, "container_id", c.ID, "error", cri.Message(err))
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// killOne stops one container of a pod that keeps running.
func (w *worker) killOne(ctx context.Context, p *corev1.Pod, k pod.Kill) {
	grace := graceOf(p)
	spec, _ := pod.Find(p, k.Container.Name)
	if spec != nil {
		var own *corev1.Probe
		switch k.Why {
		case pod.KillLiveness:
			own = spec.LivenessProbe
		case pod.KillStartup:
			own = spec.StartupProbe
		}
		if own != nil && own.TerminationGracePeriodSeconds != nil {
			grace = *own.TerminationGracePeriodSeconds
		}
	}
	message := "Container " + k.Container.Name + " " + k.Why + ", will be restarted"
	w.a.killContainer(ctx, p, &cri.Pod{}, k.Container, time.Duration(grace)*time.Second, minGrace, message, nil)
}

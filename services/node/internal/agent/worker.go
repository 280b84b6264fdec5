package agent

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/internal/telemetry"
	"keelson.dev/services/node/internal/cni"
	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/pod"
	"keelson.dev/services/node/internal/probe"
	"keelson.dev/services/node/internal/status"
)

var tracer = otel.Tracer("keelson.dev/node")

// worker drives one pod from its actual to its desired state. Its fields belong to the
// worker's goroutine, except those under mu.
type worker struct {
	a    *Agent
	uid  types.UID
	wake chan struct{}

	mu          sync.Mutex
	pod         *corev1.Pod // nil for a pod that was never seen in the API
	gone        bool        // the pod no longer exists in the API
	traceparent string
	// unanswered is when the runtime was first asked about the pod without an answer.
	unanswered time.Time
	interrupt  context.CancelFunc // cancels the running sync
	changedAt  time.Time

	ended    *pod.Refusal
	finished bool
	admitted bool
	refused  bool // ended was set because admission failed
	waiting  map[string]hold
	// backOffs maps a container to its instance whose back-off has been reported.
	backOffs map[string]string
	// linked holds the IDs of the container instances whose logs have a link for
	// collectors.
	linked      map[string]bool
	sandbox     retry
	volumes     retry
	mounted     bool
	referred    bool
	kill        *killing
	cleaned     bool
	readyTraced bool
	startedAt   time.Time
	clean       retry
}

// hold is the reason why a container is not started, and the time until which it is held.
type hold struct {
	state        corev1.ContainerStateWaiting
	since, until time.Time
}

// retry is a delay that doubles with each failure.
type retry struct {
	until time.Time
	delay time.Duration
}

func (r *retry) fail(first, most time.Duration) {
	r.delay = min(max(2*r.delay, first), most)
	r.until = time.Now().Add(r.delay)
}

func (r *retry) ok() { *r = retry{} }

func newWorker(a *Agent, uid types.UID) *worker {
	return &worker{a: a, uid: uid, wake: make(chan struct{}, 1), waiting: map[string]hold{}, backOffs: map[string]string{}, linked: map[string]bool{}}
}

func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// update gives the worker the pod's new desired state.
func (w *worker) update(p, old *corev1.Pod, traceparent string) {
	w.mu.Lock()
	w.pod, w.gone = p, false
	if old == nil || caused(p, old) {
		if traceparent != "" {
			w.traceparent = traceparent
		}
		w.changedAt = time.Now()
	}
	if ending(p) && (old == nil || !ending(old) || graceOf(p) < graceOf(old)) && w.interrupt != nil {
		w.interrupt()
	}
	w.mu.Unlock()
	w.poke()
}

// caused reports whether an update changes more than the status. Only then does its trace
// start new work here.
func caused(p, old *corev1.Pod) bool {
	return p.Generation != old.Generation || (p.DeletionTimestamp == nil) != (old.DeletionTimestamp == nil)
}

func ending(p *corev1.Pod) bool { return p.DeletionTimestamp != nil || pod.Terminal(p) }

// remove records that the pod no longer exists in the API.
func (w *worker) remove(p *corev1.Pod, traceparent string) {
	w.mu.Lock()
	if p != nil {
		w.pod = p
	}
	w.gone = true
	if traceparent != "" {
		w.traceparent = traceparent
	}
	if w.interrupt != nil {
		w.interrupt()
	}
	w.mu.Unlock()
	w.poke()
}

// run syncs the pod until ctx ends, or until the pod and everything that belonged to it are
// gone.
func (w *worker) run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	defer w.stopKilling()
	for {
		next, done := w.sync(ctx)
		if done && w.a.retire(w) {
			w.forget()
			return
		}
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		}
	}
}

func (w *worker) forget() {
	if w.a.cfg.HostPorts != nil {
		w.a.cfg.HostPorts(string(w.uid), nil)
	}
	w.a.dismiss(w.uid)
	w.a.probes.Forget(w.uid)
	w.a.objects.release(w.uid)
	w.a.writer.Forget(w.uid)
}

const (
	// resync is the interval at which a pod is synced even if nothing happened.
	resync = time.Minute
	// runtimeRetry is the delay before the next sync when the runtime did not answer.
	runtimeRetry = time.Second
)

// sync brings the pod one step closer to its desired state. It returns the longest time to
// wait before the next sync, and whether nothing is left of the pod.
func (w *worker) sync(parent context.Context) (next time.Duration, done bool) {
	ctx, cancel := context.WithCancel(parent)
	defer cancel()
	w.mu.Lock()
	p, gone, traceparent := w.pod, w.gone, w.traceparent
	w.interrupt = cancel
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.interrupt = nil
		w.mu.Unlock()
	}()
	ctx = telemetry.ContextWithTraceparent(ctx, traceparent)

	if w.unanswered.IsZero() {
		w.unanswered = time.Now()
	}
	state, err := w.a.cfg.Runtime.Pod(ctx, string(w.uid))
	if err != nil {
		if parent.Err() == nil && ctx.Err() == nil {
			w.a.log.DebugContext(ctx, "container runtime did not answer", "pod", w.name(p), "error", err)
		}
		return runtimeRetry, false
	}
	w.traceWait(ctx, p)
	if gone {
		return w.clear(ctx, p, state)
	}
	if !w.referred {
		w.a.objects.refer(p)
		w.referred = true
	}
	w.decide(p)
	if p.DeletionTimestamp != nil || w.ended != nil || w.finished || pod.Terminal(p) {
		return w.end(ctx, p, state, traceparent), false
	}
	return w.advance(ctx, p, state, traceparent), false
}

// slowRuntime is how long the runtime may take to answer before the wait gets a span of its
// own.
const slowRuntime = 250 * time.Millisecond

// traceWait records how long the pod waited for the runtime to answer, including failed
// attempts.
func (w *worker) traceWait(ctx context.Context, p *corev1.Pod) {
	asked := w.unanswered
	w.unanswered = time.Time{}
	if p == nil || time.Since(asked) < slowRuntime || !trace.SpanContextFromContext(ctx).IsValid() {
		return
	}
	_, span := tracer.Start(ctx, "wait for container runtime", trace.WithTimestamp(asked), trace.WithAttributes(podAttributes(p)...))
	span.End()
}

func (w *worker) name(p *corev1.Pod) string {
	if p == nil {
		return string(w.uid)
	}
	return pod.Key(p)
}

// decide sets ended if the node must refuse the pod or end it.
func (w *worker) decide(p *corev1.Pod) {
	if w.ended != nil || pod.Terminal(p) {
		return
	}
	if !w.admitted {
		w.admitted = true
		if w.ended = w.a.admit(p); w.ended != nil {
			w.refused = true
			w.a.cfg.Events.Pod(p, "", corev1.EventTypeWarning, w.ended.Reason, "%s", w.ended.Message)
			return
		}
	}
	if d := p.Spec.ActiveDeadlineSeconds; d != nil && p.Status.StartTime != nil {
		if !time.Now().Before(p.Status.StartTime.Add(time.Duration(*d) * time.Second)) {
			w.ended = &pod.Refusal{Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline"}
			w.a.cfg.Events.Pod(p, "", corev1.EventTypeNormal, event.DeadlineExceeded, "%s", w.ended.Message)
		}
	}
}

// wakeTimes collects times for the next sync and returns the earliest.
type wakeTimes struct{ at time.Time }

func (t *wakeTimes) add(at time.Time) {
	if !at.IsZero() && (t.at.IsZero() || at.Before(t.at)) {
		t.at = at
	}
}

func (t *wakeTimes) wait() time.Duration {
	if t.at.IsZero() {
		return resync
	}
	return max(5*time.Millisecond, min(resync, time.Until(t.at)))
}

// publish derives the pod's status from the runtime's state and hands it to the writer.
func (w *worker) publish(p *corev1.Pod, state *cri.Pod, v probe.Verdicts, waiting map[string]corev1.ContainerStateWaiting, traceparent string) *corev1.PodStatus {
	base := p
	if latest := w.a.writer.Latest(p.UID); latest != nil {
		// Compute transitions from the status written last: the watch may not have returned
		// it yet.
		shallow := *p
		shallow.Status = *latest
		shallow.Status.Conditions = mergeConditions(p, latest)
		if pod.Terminal(p) {
			shallow.Status.Phase = p.Status.Phase
		}
		base = &shallow
	}
	s := status.Make(status.View{
		Pod: base, Runtime: state, Now: time.Now(), RuntimeName: w.a.runtimeName, HostIPs: w.a.cfg.HostIPs(),
		Waiting: waiting, Started: v.Started, Ready: v.Ready, TerminationMessage: terminationMessage,
		Ended: w.ended, Refused: w.refused, Finished: w.finished,
	})
	w.a.writer.Set(p, &s, traceparent)
	w.hostPorts(p, state)
	w.traceReady(p, &s, traceparent)
	return &s
}

// mergeConditions merges our latest conditions with those that other writers have set.
func mergeConditions(p *corev1.Pod, latest *corev1.PodStatus) []corev1.PodCondition {
	out := append([]corev1.PodCondition(nil), latest.Conditions...)
	for _, c := range p.Status.Conditions {
		found := false
		for i := range out {
			if out[i].Type == c.Type {
				found = true
				if !status.Owned(c.Type) {
					out[i] = c
				}
			}
		}
		if !found {
			out = append(out, c)
		}
	}
	return out
}

// hostPorts passes the pod's host ports to the pod network.
func (w *worker) hostPorts(p *corev1.Pod, state *cri.Pod) {
	if w.a.cfg.HostPorts == nil || p.Spec.HostNetwork {
		return
	}
	box := state.Sandbox()
	if box == nil || !box.Ready || len(box.IPs) == 0 {
		w.a.cfg.HostPorts(string(w.uid), nil)
		return
	}
	w.a.cfg.HostPorts(string(w.uid), hostPortsOf(p, box.IPs[0]))
}

// runningHostPorts returns the host ports of the pods that have a ready sandbox, by pod UID,
// with the addresses that their statuses report.
func runningHostPorts(pods []*corev1.Pod, seen map[string]cri.Seen) map[string][]cni.HostPort {
	ready := map[types.UID]bool{}
	for _, s := range seen {
		if s.Sandbox && s.State == int32(runtimev1.PodSandboxState_SANDBOX_READY) {
			ready[types.UID(s.PodUID)] = true
		}
	}
	out := map[string][]cni.HostPort{}
	for _, p := range pods {
		if !ready[p.UID] || p.Spec.HostNetwork || pod.Terminal(p) {
			continue
		}
		if ports := hostPortsOf(p, p.Status.PodIP); len(ports) > 0 {
			out[string(p.UID)] = ports
		}
	}
	return out
}

func hostPortsOf(p *corev1.Pod, ip string) []cni.HostPort {
	target, err := netip.ParseAddr(ip)
	if err != nil {
		return nil
	}
	var out []cni.HostPort
	add := func(c *corev1.Container) {
		for _, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			h := cni.HostPort{
				Protocol: string(port.Protocol), HostPort: uint16(port.HostPort),
				Target: netip.AddrPortFrom(target, uint16(port.ContainerPort)),
			}
			if addr, err := netip.ParseAddr(port.HostIP); err == nil && !addr.IsUnspecified() {
				h.HostIP = addr
			}
			out = append(out, h)
		}
	}
	for i := range p.Spec.InitContainers {
		if pod.IsSidecar(&p.Spec.InitContainers[i]) {
			add(&p.Spec.InitContainers[i])
		}
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i])
	}
	return out
}

package agent

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/internal/telemetry"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/pod"
)

var tracer = otel.Tracer("keelson.dev/node")

// worker drives one pod from its actual to its desired state. Its fields belong to the
// worker's goroutine, except those under mu.
type worker struct {
	a    *Agent
	uid  types.UID
	wake chan struct{}

	mu sync.Mutex
	// latest is the status that was published last. It is written by the worker only.
	latest      *corev1.PodStatus
	pod         *corev1.Pod // nil for a pod that was never seen in the API
	gone        bool        // the pod no longer exists in the API
	traceparent string
	// unanswered is when the runtime was first asked about the pod without an answer.
	unanswered time.Time
	interrupt  context.CancelFunc // cancels the running sync
	changedAt  time.Time
	// evicted is the ending that Evict asked for.
	evicted *pod.Ending

	resize resizing

	// ended is why the node ends the pod, and refused why it does not run it.
	ended    *pod.Ending
	refused  *pod.Refusal
	finished bool
	admitted bool
	waiting  map[string]hold
	// backOffs maps a container to its instance whose back-off has been reported.
	backOffs map[string]string
	// linked holds the IDs of the container instances whose logs have a link for
	// collectors.
	linked  map[string]bool
	sandbox retry
	volumes retry
	mounted bool
	// referred is one more than the number of ephemeral containers of the pod whose objects
	// are watched. No other containers are added to a pod.
	referred int
	kill     *killing
	cleaned  bool
	// over is closed when the pod has no container, volume or cgroup any more; isOver is
	// true from then on.
	over        chan struct{}
	isOver      bool
	readyTraced bool
	startedAt   time.Time
	clean       retry
}

func newWorker(a *Agent, uid types.UID) *worker {
	return &worker{a: a, uid: uid, wake: make(chan struct{}, 1), waiting: map[string]hold{}, backOffs: map[string]string{}, linked: map[string]bool{}, over: make(chan struct{}),
		resize: resizing{applied: map[string]*runtimev1.LinuxContainerResources{}, replaced: map[string]bool{}},
	}
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
	w.release()
	w.a.undefer(w.uid)
	if w.a.cfg.HostPorts != nil {
		w.a.cfg.HostPorts(string(w.uid), nil)
	}
	w.forgetPolicies()
	w.releaseDevices()
	w.a.dismiss(w.uid)
	w.a.probes.Forget(w.uid)
	w.a.objects.release(w.uid)
	w.a.writer.Forget(w.uid)
	if w.a.cfg.Fence != nil {
		w.a.cfg.Fence.Leave(w.uid)
	}
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
	if n := 1 + len(p.Spec.EphemeralContainers); w.referred != n {
		w.a.objects.refer(p)
		w.referred = n
	}
	if err := w.decide(ctx, p); err != nil {
		return 0, false // ctx has ended: what interrupted the sync is handled first
	}
	p = w.allot(p)
	if p.DeletionTimestamp != nil || w.refused != nil || w.ended != nil || w.finished || pod.Terminal(p) {
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

// decide sets refused or ended if the node must not run the pod, or no longer. The error is
// that of ctx; then nothing is decided.
func (w *worker) decide(ctx context.Context, p *corev1.Pod) (err error) {
	if w.refused != nil || pod.Terminal(p) {
		return nil
	}
	if !w.admitted {
		if w.refused, err = w.a.admit(ctx, p); err != nil {
			return err
		}
		w.admitted = true
		if w.refused != nil {
			w.a.cfg.Events.Pod(p, "", corev1.EventTypeWarning, w.refused.Reason, "%s", w.refused.Message)
			return nil
		}
		if w.ended = pod.Interrupted(p); w.ended != nil {
			w.ended.Grace = w.recordedGrace()
		}
	}
	w.takeEviction()
	w.fenced(p)
	if d := p.Spec.ActiveDeadlineSeconds; w.ended == nil && d != nil && p.Status.StartTime != nil {
		if !time.Now().Before(p.Status.StartTime.Add(time.Duration(*d) * time.Second)) {
			w.ended = &pod.Ending{Reason: "DeadlineExceeded", Message: "Pod was active on the node longer than the specified deadline"}
			w.a.cfg.Events.Pod(p, "", corev1.EventTypeNormal, event.DeadlineExceeded, "%s", w.ended.Message)
		}
	}
	return nil
}

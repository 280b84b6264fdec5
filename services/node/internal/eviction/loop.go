package eviction

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/pod"
)

// Agent runs the node's pods.
type Agent interface {
	// Active returns the pods that hold resources of the node.
	Active() []*corev1.Pod
	// Evict ends a pod. The channel is closed when nothing of it is left.
	Evict(uid types.UID, e pod.Ending) (<-chan struct{}, error)
}

// Config configures a Loop.
type Config struct {
	// Node is the node's name.
	Node   string
	Policy *Policy
	Agent  Agent
	Memory MemoryMeter
	Disk   DiskMeter
	// Limit is the memory that all pods together may use, in bytes; 0 means no limit.
	Limit int64
	// Reclaim removes ended containers and unused images.
	Reclaim func(context.Context) error
	Events  *event.Recorder
	Metrics *Metrics
}

// Loop watches what is left of a node. Memory and process IDs are watched by one goroutine
// and disks by another, because measuring disks takes long and can wait for the runtime.
type Loop struct {
	cfg          Config
	now          func() time.Time
	memory, disk *watch
}

// New returns a Loop. It looks once at memory, so that the node's first status is true, and
// does nothing else until Run is called.
func New(cfg Config) *Loop { return newLoop(cfg, time.Now) }

func newLoop(cfg Config, now func() time.Time) *Loop {
	l := &Loop{cfg: cfg, now: now}
	l.memory = &watch{loop: l, meter: &memoryWatch{meter: cfg.Memory, limit: cfg.Limit, node: cfg.Node}, policy: cfg.Policy.only(false)}
	l.disk = &watch{loop: l, meter: &diskWatch{meter: cfg.Disk}, policy: cfg.Policy.only(true), reclaim: cfg.Reclaim, limits: true}
	l.memory.observe(context.Background())
	return l
}

// only returns a policy with the thresholds about disks, or with the others.
func (p *Policy) only(disk bool) *Policy {
	out := *p
	out.Thresholds = nil
	for _, t := range p.Thresholds {
		if disk == (t.Signal.Condition() == corev1.NodeDiskPressure) {
			out.Thresholds = append(out.Thresholds, t)
		}
	}
	return &out
}

// Run watches the node until ctx ends.
func (l *Loop) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for _, w := range []*watch{l.memory, l.disk} {
		all.Go(func() { w.run(ctx) })
	}
	all.Wait()
	return nil
}

// Pressure returns the node's pressure conditions that are true.
func (l *Loop) Pressure() []corev1.NodeConditionType {
	var out []corev1.NodeConditionType
	for _, c := range conditions {
		for _, w := range []*watch{l.memory, l.disk} {
			if w.pressed(c) {
				out = append(out, c)
			}
		}
	}
	return out
}

// Admit returns why the node refuses a pod, or nil.
func (l *Loop) Admit(p *corev1.Pod) *pod.Refusal { return Admit(p, l.Pressure()) }

// meter observes what is left, and measures pods.
type meter interface {
	observe(ctx context.Context) Observed
	// measure measures pods. imageDisk is true if images have a disk of their own.
	measure(ctx context.Context, pods []*corev1.Pod) (list []Candidate, imageDisk bool, err error)
}

// watch acts on some of a policy's thresholds. Its fields belong to its goroutine, except for
// pressure.
type watch struct {
	loop    *Loop
	meter   meter
	policy  *Policy
	reclaim func(context.Context) error
	// limits is true if the watch also enforces the limits of local storage.
	limits bool

	state State
	// ending holds the evicted pods that did not end in time: they are not waited for again.
	ending map[types.UID]<-chan struct{}
	// retry is when an action that had no effect is tried again, and compared when limits
	// were last compared.
	retry, compared time.Time
	pressure        atomic.Pointer[[]corev1.NodeConditionType]
}

func (w *watch) pressed(c corev1.NodeConditionType) bool {
	list := w.pressure.Load()
	if list == nil {
		return false
	}
	for _, have := range *list {
		if have == c {
			return true
		}
	}
	return false
}

func (w *watch) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		timer.Reset(w.look(ctx))
	}
}

// observe reads what is left and reports the pressure.
func (w *watch) observe(ctx context.Context) (Observed, Verdict) {
	o := w.meter.observe(ctx)
	var v Verdict
	w.state, v = Step(w.policy, w.state, o, w.loop.now())
	for _, c := range conditions {
		now := false
		for _, p := range v.Pressure {
			now = now || p == c
		}
		if now != w.pressed(c) {
			slog.WarnContext(ctx, "node condition changes", "node", w.loop.cfg.Node, "condition", string(c), "status", now)
		}
	}
	w.pressure.Store(&v.Pressure)
	return o, v
}

// look looks once, acts if something is due, and returns how long to wait before the next
// look.
func (w *watch) look(ctx context.Context) time.Duration {
	o, v := w.observe(ctx)
	now := w.loop.now()
	if w.limits && now.Sub(w.compared) >= idlePace {
		w.compared = now
		if w.enforce(ctx) {
			return 0
		}
	}
	if v.Due != nil && !now.Before(w.retry) {
		if w.act(ctx, v.Due, o) {
			return 0
		}
		w.retry = now.Add(idlePace)
	}
	return Pace(w.policy, w.state, o, w.loop.now())
}

// act makes a resource free: it removes what nobody uses, or else evicts one pod and waits
// until the pod is gone. It reports whether it had an effect.
func (w *watch) act(ctx context.Context, t *Threshold, o Observed) bool {
	cfg := &w.loop.cfg
	left := o[t.Signal]
	want := t.Value.Of(left.Capacity)
	slog.WarnContext(ctx, "node is low on a resource", "node", cfg.Node, "signal", string(t.Signal), "available", left.Available, "threshold", want.Value(), "grace", t.Grace)
	cfg.Events.Node(cfg.Node, corev1.EventTypeWarning, event.EvictionThresholdMet, "Attempting to reclaim %s", t.Signal.Resource())
	if w.reclaim != nil {
		if err := w.reclaim(ctx); err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "ended containers and unused images were not all removed", "node", cfg.Node, "error", err)
		}
		if resolved(w.policy, t.Signal, w.meter.observe(ctx)) {
			slog.InfoContext(ctx, "removed ended containers and unused images; no pod is evicted", "node", cfg.Node, "signal", string(t.Signal))
			return true
		}
	}
	list, imageDisk, err := w.meter.measure(ctx, cfg.Agent.Active())
	if err != nil {
		slog.WarnContext(ctx, "pods were not measured", "node", cfg.Node, "error", err)
		return false
	}
	for _, c := range Rank(list, t.Signal, imageDisk) {
		if pod.IsCritical(c.Pod) || w.isEnding(c.Pod.UID) {
			continue
		}
		text, annotations := message(c, t, left)
		e := pod.Ending{Reason: Reason, Message: text, Grace: grace(cfg.Policy, t, c.Pod), Conditions: []corev1.PodCondition{pod.Disrupted(text)}}
		if over := w.evict(ctx, c.Pod, e, annotations, string(t.Signal)); over != nil {
			w.await(ctx, c.Pod, over)
			return true
		}
	}
	slog.WarnContext(ctx, "no pod can be evicted", "node", cfg.Node, "signal", string(t.Signal), "pods", len(list))
	return false
}

// enforce evicts the pods that exceed a limit of local storage, and reports whether there
// were any.
func (w *watch) enforce(ctx context.Context) bool {
	var limited []*corev1.Pod
	for _, p := range w.loop.cfg.Agent.Active() {
		if Limited(p) && !w.isEnding(p.UID) {
			limited = append(limited, p)
		}
	}
	if len(limited) == 0 {
		return false
	}
	list, imageDisk, err := w.meter.measure(ctx, limited)
	if err != nil {
		if ctx.Err() == nil {
			slog.WarnContext(ctx, "pods were not measured", "node", w.loop.cfg.Node, "error", err)
		}
		return false
	}
	type ending struct {
		pod  *corev1.Pod
		over <-chan struct{}
	}
	var evicted []ending
	for _, c := range list {
		limit, text := Exceeded(c, imageDisk)
		if limit == "" || pod.IsCritical(c.Pod) {
			continue
		}
		at := hardGrace
		if over := w.evict(ctx, c.Pod, pod.Ending{Reason: Reason, Message: text, Grace: &at}, nil, limit); over != nil {
			evicted = append(evicted, ending{c.Pod, over})
		}
	}
	for _, e := range evicted {
		w.await(ctx, e.pod, e.over)
	}
	return len(evicted) > 0
}

// evict evicts a pod. It returns nil if the node has no such pod any more.
func (w *watch) evict(ctx context.Context, p *corev1.Pod, e pod.Ending, annotations map[string]string, signal string) <-chan struct{} {
	cfg := &w.loop.cfg
	over, err := cfg.Agent.Evict(p.UID, e)
	if err != nil {
		return nil
	}
	slog.WarnContext(ctx, "pod evicted", "node", cfg.Node, "pod", pod.Key(p), "pod_uid", p.UID, "signal", signal, "message", e.Message)
	cfg.Events.Annotated(p, annotations, corev1.EventTypeWarning, event.Evicted, "%s", e.Message)
	cfg.Metrics.evicted(signal)
	return over
}

// goneWait is how long an evicted pod is waited for, as by the kubelet.
const goneWait = 30 * time.Second

// await waits until an evicted pod is gone.
func (w *watch) await(ctx context.Context, p *corev1.Pod, over <-chan struct{}) {
	timer := time.NewTimer(goneWait)
	defer timer.Stop()
	select {
	case <-over:
		return
	case <-ctx.Done():
		return
	case <-timer.C:
	}
	slog.WarnContext(ctx, "evicted pod has not ended yet", "node", w.loop.cfg.Node, "pod", pod.Key(p), "pod_uid", p.UID)
	if w.ending == nil {
		w.ending = map[types.UID]<-chan struct{}{}
	}
	w.ending[p.UID] = over
}

// isEnding reports whether a pod has been evicted and was not gone in time.
func (w *watch) isEnding(uid types.UID) bool {
	for id, over := range w.ending {
		select {
		case <-over:
			delete(w.ending, id)
		default:
		}
	}
	return w.ending[uid] != nil
}

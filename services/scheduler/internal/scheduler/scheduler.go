// Package scheduler assigns pods to nodes: it follows the cluster, decides for one pod
// after another, assumes each decision at once, and binds pods in batches while it goes
// on deciding.
//
// A pod is always in exactly one place: in the queue, in flight (decided, not yet
// confirmed by the watch), or on a node. If a binding fails, its assumption is undone
// and the pod returns to the queue.
//
// It must never bind a pod that it does not believe to be pending, and never wait for
// the network while it holds its lock.
package scheduler

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/event"
	"keelson.dev/services/internal/ops"
	"keelson.dev/services/scheduler/internal/decide"
	"keelson.dev/services/scheduler/internal/plugin"
	"keelson.dev/services/scheduler/internal/queue"
	"keelson.dev/services/scheduler/internal/state"
	"keelson.dev/services/scheduler/internal/volume"
)

// Config of a Scheduler.
type Config struct {
	Client *client.Client
	Caches *Caches
	Events *event.Recorder
	// Name is the spec.schedulerName of the pods to schedule.
	Name string
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Scheduler assigns pods to nodes.
type Scheduler struct {
	cfg      Config
	metrics  *metrics
	progress ops.Progress // of the deciding goroutine
	// fence is the epoch of the current leader.
	fence atomic.Pointer[client.Fence]

	mu      sync.Mutex
	env     *plugin.Env
	engine  *decide.Engine
	queue   *queue.Queue
	volumes *volume.Binder
	flights map[state.Key]*flight
	// waiting holds the pods whose claims get their volumes first; ready holds those
	// that have got them and are to be bound.
	waiting map[state.Key]*flight
	ready   []*flight
	// reports holds what is to be written to pods' status.
	reports map[state.Key]report
	// evicting are the pods that preemption evicts and that do not show it yet, and
	// evictions those whose writes have not begun.
	evicting  map[state.Key]types.UID
	evictions []*eviction
	budgets   *budgets
	// wake has a value when there may be work for the deciding goroutine, and reporting
	// when there is for the one that writes refusals.
	wake, reporting chan struct{}
}

// flight is a pod that is decided and assumed, but not confirmed.
type flight struct {
	item    *queue.Item
	node    string
	assumed *state.Pod
	began   time.Time
	decided time.Time
	trace   traced
	// plan provides the volumes of the pod's claims; nil if they have them. written is
	// true once the plan's writes are done.
	plan    *volume.Plan
	written bool
}

// New returns a scheduler that follows the caches, which need not run yet.
func New(cfg Config) *Scheduler {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Scheduler{
		cfg:       cfg,
		progress:  ops.Progress{Patience: stuck},
		metrics:   newMetrics(),
		queue:     queue.New(cfg.Now),
		flights:   map[state.Key]*flight{},
		waiting:   map[state.Key]*flight{},
		volumes:   volume.NewBinder(lister{cfg.Caches}),
		reports:   map[state.Key]report{},
		evicting:  map[state.Key]types.UID{},
		budgets:   newBudgets(0),
		wake:      make(chan struct{}, 1),
		reporting: make(chan struct{}, 1),
	}
	s.env = &plugin.Env{Cluster: state.New(), DefaultSelector: s.defaultSelector}
	s.engine = decide.New(s.env)
	s.follow()
	return s
}

// stuck is how long the deciding goroutine may take for a round, which is to last for
// milliseconds and waits for nothing but the lock.
const stuck = time.Minute

// Check returns an error if the deciding goroutine hangs.
func (s *Scheduler) Check(ctx context.Context) error { return s.progress.Check(ctx) }

// poke wakes the deciding goroutine.
func (s *Scheduler) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// defaultSelector selects the pods that belong together with a pod: those of the
// Services that select it and of the ReplicaSet that controls it.
func (s *Scheduler) defaultSelector(p *state.Pod) labels.Selector {
	set := labels.Set{}
	for _, svc := range s.cfg.Caches.Services.ByIndex(byNamespace, p.Namespace) {
		if sel := labels.Set(svc.Spec.Selector); len(sel) > 0 && sel.AsSelectorPreValidated().Matches(p.Labels) {
			for k, v := range sel {
				set[k] = v
			}
		}
	}
	out := set.AsSelectorPreValidated()
	owner := metav1.GetControllerOfNoCopy(p.Object)
	if owner == nil || owner.Kind != "ReplicaSet" {
		return out
	}
	if rs, ok := s.cfg.Caches.ReplicaSets.Get(p.Namespace, owner.Name); ok && rs.UID == owner.UID {
		if sel, err := metav1.LabelSelectorAsSelector(rs.Spec.Selector); err == nil {
			if reqs, ok := sel.Requirements(); ok {
				out = out.Add(reqs...)
			}
		}
	}
	return out
}

// Lead schedules until ctx ends, and then completes what is in flight. Only one process
// may lead at a time.
func (s *Scheduler) Lead(ctx context.Context) error {
	s.fence.Store(client.FenceFrom(ctx))
	defer s.cfg.Events.Flush()
	if !s.caughtUp(ctx) {
		return nil
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { s.writeReports(ctx) })
	wg.Go(func() { s.followBudgets(ctx) })
	slots := make(chan struct{}, binders)
	send := func(write, drop func()) {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			drop()
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			write()
		})
	}
	for ctx.Err() == nil {
		s.progress.Begin()
		w, idle := s.round()
		s.progress.End()
		if len(w.evict) > 0 {
			send(func() { s.evict(ctx, w.evict) }, func() { s.abandon(w.evict) })
		}
		if len(w.provide) > 0 {
			send(func() { s.provide(ctx, w.provide) }, func() { s.undo(w.provide, ctx.Err()) })
		}
		if len(w.bind) > 0 {
			send(func() { s.bind(ctx, w.bind) }, func() { s.undo(w.bind, ctx.Err()) })
		}
		if idle {
			s.rest(ctx)
		}
	}
	return nil
}

// caughtUp waits until the caches show what a previous leader bound last. It returns
// false if ctx ends first.
func (s *Scheduler) caughtUp(ctx context.Context) bool {
	const again = 200 * time.Millisecond
	for {
		err := s.cfg.Caches.CatchUp(ctx)
		if err == nil || ctx.Err() != nil {
			return err == nil
		}
		slog.WarnContext(ctx, "caches have not caught up", "error", err)
		select {
		case <-time.After(again):
		case <-ctx.Done():
			return false
		}
	}
}

// Limits on what is in flight: pods in one message, and messages.
const (
	batchSize = 256
	binders   = 4
)

// work is what a round decided.
type work struct {
	bind []*flight
	// provide are the pods whose claims get their volumes first.
	provide []*flight
	evict   []*eviction
}

// round decides until a batch is full, a time limit has passed, or no pod waits.
func (s *Scheduler) round() (w work, idle bool) {
	const most = 5 * time.Millisecond
	began := s.cfg.Now()
	for len(w.bind)+len(w.provide) < batchSize && s.cfg.Now().Sub(began) < most {
		f, none := s.one()
		if none {
			idle = true
			break
		}
		switch {
		case f == nil:
		case f.plan != nil:
			w.provide = append(w.provide, f)
		default:
			w.bind = append(w.bind, f)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	w.bind = append(w.bind, s.ready...)
	w.evict, s.evictions = s.evictions, nil
	s.ready = nil
	return w, idle
}

// rest waits for work.
func (s *Scheduler) rest(ctx context.Context) {
	const most = 10 * time.Second // then look for what is aside for too long
	s.progress.Begin()
	s.mu.Lock()
	wait := most
	if at, ok := s.queue.Next(); ok {
		wait = min(wait, max(at.Sub(s.cfg.Now()), time.Millisecond))
	}
	s.mu.Unlock()
	s.progress.End()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-s.wake:
	case <-ctx.Done():
	case <-timer.C:
		s.mu.Lock()
		s.queue.Flush()
		s.look()
		s.mu.Unlock()
	}
}

// one decides for the next pod. It returns nil if the pod was refused, and none if no
// pod waits.
func (s *Scheduler) one() (f *flight, none bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	began := s.cfg.Now()
	it := s.queue.Pop()
	if it == nil {
		return nil, true
	}
	demand, reason := s.volumes.Read(s.env.Cluster, it.Pod)
	var v *decide.Verdict
	if reason != "" {
		v = s.engine.Refuse(it.Pod, plugin.VolumeBinding, reason)
	} else {
		v = s.engine.Decide(it.Pod, demand.Filters()...)
	}
	s.metrics.attempt(v.Node != nil, s.cfg.Now().Sub(began))
	if v.Node == nil {
		s.preempt(it, v, reason != "", demand.Filters())
		s.refuse(it, v, began)
		return nil, false
	}
	nominee := s.env.Withdraw(it.Key())
	f = &flight{item: it, node: v.Node.Name, began: began, decided: s.cfg.Now()}
	f.trace = startTrace(it, v, began)
	f.assumed = it.Pod.On(f.node)
	s.env.SetPod(f.assumed)
	s.flights[it.Key()] = f
	if nominee != nil && nominee.Node != f.node {
		s.happened(&plugin.Event{Went: nominee})
	}
	if f.plan = demand.Plan(v.Node); f.plan != nil {
		s.waiting[it.Key()] = f
	}
	return f, false
}

// refuse puts a pod aside, and reports why if the reason is new.
func (s *Scheduler) refuse(it *queue.Item, v *decide.Verdict, began time.Time) {
	last := it.Message
	s.queue.Refused(it, v.Class, v.Message, v.Plugins)
	if last == v.Message {
		return
	}
	traceRefusal(it, v, began, s.cfg.Now())
	s.report(it, last, corev1.PodReasonUnschedulable, v.Message)
}

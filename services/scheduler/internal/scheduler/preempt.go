package scheduler

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/scheduler/internal/decide"
	"keelson.dev/services/scheduler/internal/plugin"
	"keelson.dev/services/scheduler/internal/queue"
	"keelson.dev/services/scheduler/internal/state"
)

// Preemption: a pod that no node has room for may have pods of lower priority evicted.
//
// The decision (decide.Preempt) is taken under the lock, and three things are recorded at
// once, before anything is written: the pod is nominated for the node, so that its requests
// count for pods of the same or a lower priority; the victims are evicting, so that the pod
// does not preempt more while they leave; and pods of lower priority lose their nomination
// for the node. Many pending pods therefore never count on the same room.
//
// Then the victims get the condition DisruptionTarget, and are deleted once that is
// written. They terminate gracefully; when they are gone, the pod is decided again and
// takes its node if nothing better came up. A write that fails ends the eviction of that
// victim, and the pod is decided again. A process that stops leading forgets what it has
// not written: the next one reads nominations and conditions from the pods.

// eviction is a preemption whose victims are to be evicted.
type eviction struct {
	pod         *corev1.Pod // the preemptor
	node        string
	victims     []*corev1.Pod
	traceparent string
}

// preempt looks for pods to evict in favour of a pod without a node, and adds to the
// verdict's message what came of it. refused is true if the pod cannot have a node for a
// reason of its own. The lock must be held.
func (s *Scheduler) preempt(it *queue.Item, v *decide.Verdict, refused bool, filters []plugin.Filter) {
	if v.Nodes == 0 {
		s.withdraw(it.Pod.Object)
		return
	}
	var p *decide.Preemption
	switch {
	case refused:
		p = s.engine.RefusedPreemption(it.Pod)
	case s.env.Outranks(it.Pod.Priority) && !s.budgets.ready:
		s.budgets.want()
		return
	default:
		p = s.engine.Preempt(it.Pod, decide.Surroundings{Budgets: s.budgets.in, Revision: s.budgets.revision, Evicting: s.isEvicting}, filters...)
		s.metrics.preempted(p)
	}
	v.Message += " " + p.Message
	switch {
	case p.Node != nil:
		s.nominate(it, p)
	case !p.Keep:
		s.withdraw(it.Pod.Object)
	}
}

// nominate records a preemption and has its victims evicted.
func (s *Scheduler) nominate(it *queue.Item, p *decide.Preemption) {
	s.env.Nominate(it.Pod, p.Node.Name)
	s.toReport(it.Pod.Object, it.Traceparent, func(r *report) { r.nominate = &p.Node.Name })
	for _, q := range p.Outranked {
		key := state.Key{Namespace: q.Namespace, Name: q.Name}
		if other, ok := s.queue.Get(key); ok {
			s.withdraw(other.Pod.Object)
			s.queue.Again(key)
		} else {
			s.env.Withdraw(key)
		}
	}
	ev := &eviction{pod: it.Pod.Object, node: p.Node.Name, traceparent: it.Traceparent}
	for _, q := range p.Victims {
		key := state.Key{Namespace: q.Namespace, Name: q.Name}
		if q.Terminating || s.isEvicting(key, q.UID) {
			continue
		}
		o, ok := s.cfg.Caches.Pods.Get(q.Namespace, q.Name)
		if !ok || o.UID != q.UID {
			continue // it is gone, and the news is under way
		}
		s.evicting[key] = q.UID
		ev.victims = append(ev.victims, o)
	}
	if len(ev.victims) > 0 {
		s.evictions = append(s.evictions, ev)
	}
}

// withdraw ends the nomination of a pending pod, if it has one.
func (s *Scheduler) withdraw(o *corev1.Pod) {
	q := s.env.Withdraw(state.Key{Namespace: o.Namespace, Name: o.Name})
	if q != nil {
		s.happened(&plugin.Event{Went: q})
	}
	if q != nil || o.Status.NominatedNodeName != "" {
		s.toReport(o, "", func(r *report) { r.nominate = new(string) })
	}
}

func (s *Scheduler) isEvicting(key state.Key, uid types.UID) bool { return s.evicting[key] == uid }

// followNomination takes over the nomination that a pending pod has in its status. One that is made
// here is in the status only later.
func (s *Scheduler) followNomination(old, o *corev1.Pod) {
	var before string
	if old != nil && old.UID == o.UID {
		before = old.Status.NominatedNodeName
	}
	if before == o.Status.NominatedNodeName {
		return
	}
	key := state.Key{Namespace: o.Namespace, Name: o.Name}
	if r, ok := s.reports[key]; ok && r.nominate != nil {
		return // what is still to be written is newer
	}
	if o.Status.NominatedNodeName != "" {
		s.env.Nominate(state.NewPod(o), o.Status.NominatedNodeName)
		return
	}
	if q := s.env.Withdraw(key); q != nil {
		s.happened(&plugin.Event{Went: q})
	}
}

// evict writes the conditions of the victims of a batch, and deletes those that have it.
func (s *Scheduler) evict(ctx context.Context, batch []*eviction) {
	type victim struct {
		*corev1.Pod
		of *eviction
	}
	var victims []victim
	var writes []client.Write
	now := metav1.NewTime(s.cfg.Now().Truncate(time.Second))
	for _, ev := range batch {
		for _, o := range ev.victims {
			patch, err := json.Marshal(map[string]any{
				"metadata": map[string]any{"uid": o.UID},
				"status": map[string]any{"conditions": []corev1.PodCondition{{
					Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler,
					Message:            s.cfg.Name + ": preempting to accommodate a higher priority pod",
					ObservedGeneration: o.Generation, LastTransitionTime: now,
				}}},
			})
			if err != nil {
				s.failed(ev, o, err)
				continue
			}
			victims = append(victims, victim{o, ev})
			writes = append(writes, client.PatchWrite[*corev1.Pod](o.Namespace, o.Name, types.StrategicMergePatchType, patch,
				client.Subresource("status")).WithTraceparent(ev.traceparent))
		}
	}
	commit := func(writes []client.Write) (written []victim) {
		results, err := s.cfg.Client.CommitQuietly(ctx, writes...)
		for i, v := range victims {
			werr := err
			if i < len(results) {
				werr = results[i].Err
			}
			switch {
			case werr == nil:
				written = append(written, v)
			case apierrors.IsNotFound(werr) || apierrors.IsConflict(werr):
				// It is gone, or another has its name.
			default:
				s.failed(v.of, v.Pod, werr)
			}
		}
		return written
	}
	victims = commit(writes)
	writes = writes[:0]
	for _, v := range victims {
		writes = append(writes, client.DeleteWrite[*corev1.Pod](v.Namespace, v.Name, client.UID(v.UID)).WithTraceparent(v.of.traceparent))
	}
	for _, v := range commit(writes) {
		s.cfg.Events.Normal(s.eventContext(v.of.traceparent), v.Pod, "Preempted", "Preempted by pod %s on node %s", v.of.pod.UID, v.of.node)
	}
}

// failed ends the eviction of one victim, and lets the preemptor be decided again.
func (s *Scheduler) failed(ev *eviction, victim *corev1.Pod, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spare(victim)
	s.queue.Again(state.Key{Namespace: ev.pod.Namespace, Name: ev.pod.Name})
	s.poke()
	if !errors.Is(err, context.Canceled) {
		slog.WarnContext(context.Background(), "pod was not preempted", "pod", victim.Namespace+"/"+victim.Name,
			"preemptor", ev.pod.Namespace+"/"+ev.pod.Name, "node", ev.node, "error", err)
	}
}

// abandon ends evictions that are not to be written.
func (s *Scheduler) abandon(batch []*eviction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, ev := range batch {
		for _, o := range ev.victims {
			s.spare(o)
		}
	}
}

func (s *Scheduler) spare(victim *corev1.Pod) {
	if key := (state.Key{Namespace: victim.Namespace, Name: victim.Name}); s.isEvicting(key, victim.UID) {
		delete(s.evicting, key)
	}
}

// budgets are the PodDisruptionBudgets. They are read from the first preemption of a term
// on: most clusters never have one.
type budgets struct {
	of map[string][]named // by namespace, sorted by name
	// revision changes with any of them.
	revision uint64
	ready    bool
	wanted   chan struct{} // has a value once they are needed
}

type named struct {
	name string
	*decide.Budget
}

func newBudgets(revision uint64) *budgets {
	return &budgets{of: map[string][]named{}, wanted: make(chan struct{}, 1), revision: revision}
}

func (b *budgets) want() {
	select {
	case b.wanted <- struct{}{}:
	default:
	}
}

// in returns the budgets of a namespace.
func (b *budgets) in(namespace string) []*decide.Budget {
	out := make([]*decide.Budget, len(b.of[namespace]))
	for i, one := range b.of[namespace] {
		out[i] = one.Budget
	}
	return out
}

// followBudgets reads the budgets once they are needed, until ctx ends.
func (s *Scheduler) followBudgets(ctx context.Context) {
	s.mu.Lock()
	b := newBudgets(s.budgets.revision + 1)
	s.budgets = b
	s.mu.Unlock()
	select {
	case <-b.wanted:
	case <-ctx.Done():
		return
	}
	cache := client.NewCache(s.cfg.Client, client.CacheOptions[*policyv1.PodDisruptionBudget]{
		Transform: bare[*policyv1.PodDisruptionBudget],
	})
	cache.Subscribe(func(ev client.Event[*policyv1.PodDisruptionBudget]) { s.onBudget(b, ev) })
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cache.Run(ctx) // returns nil
	}()
	defer func() { <-done }()
	const patience = 10 * time.Second
	slow := time.NewTimer(patience)
	defer slow.Stop()
	for synced := false; !synced; {
		select {
		case <-cache.Synced():
			synced = true
		case <-slow.C:
			slog.WarnContext(ctx, "no pod is preempted until the PodDisruptionBudgets have been read", "error", cache.Err())
		case <-ctx.Done():
			return
		}
	}
	s.mu.Lock()
	b.ready = true
	s.queue.Wake(func(p *state.Pod, _ []string) bool { return s.env.Outranks(p.Priority) })
	s.poke()
	s.mu.Unlock()
	<-ctx.Done()
}

func (s *Scheduler) onBudget(b *budgets, ev client.Event[*policyv1.PodDisruptionBudget]) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := ev.Object
	b.revision++
	list := slices.DeleteFunc(b.of[o.Namespace], func(n named) bool { return n.name == o.Name })
	if ev.Type != client.Deleted {
		list = append(list, named{o.Name, &decide.Budget{
			Selector: state.Selector(o.Spec.Selector), Allowed: o.Status.DisruptionsAllowed,
			Disrupted: func(name string) bool { _, ok := o.Status.DisruptedPods[name]; return ok },
		}})
		slices.SortFunc(list, func(x, y named) int { return cmp.Compare(x.name, y.name) })
	}
	if b.of[o.Namespace] = list; len(list) == 0 {
		delete(b.of, o.Namespace)
	}
}

package daemonset

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/controller-manager/internal/history"
	"keelson.dev/services/controller-manager/internal/podstate"
)

// burst limits the pods created, and the pods deleted, in one reconcile. The value is
// Kubernetes' BurstReplicas.
const burst = 250

// State is the input of Plan.
type State struct {
	Nodes     []*corev1.Node
	Pods      []*corev1.Pod
	Revisions []*appsv1.ControllerRevision
	// Hash is the hash of the current template's revision.
	Hash string
	Now  time.Time
	// Wait returns how long to wait before replacing a failed pod on a node; 0 means
	// that it is replaced now.
	Wait func(node string) time.Duration
}

// Actions lists the writes of one reconcile.
type Actions struct {
	// Create lists the nodes to create a pod for.
	Create []string
	Delete []*corev1.Pod
	// Failed lists the nodes whose failed pods are in Delete and count towards the
	// backoff.
	Failed []string
	// Forget lists the revisions to delete because they exceed the history limit.
	Forget []*appsv1.ControllerRevision
	Status appsv1.DaemonSetStatus
	Events []Event
	// RequeueAfter is how long until the passing of time alone may change the plan;
	// 0 means never.
	RequeueAfter time.Duration
}

// Event is an event to record for the set.
type Event struct {
	Warning         bool
	Reason, Message string
}

// place is a node with the set's pods on it. The node may no longer exist.
type place struct {
	name string
	fit  fit
	pods []*corev1.Pod // oldest first
	// create is true if the plan creates a pod on the node.
	create bool
}

type planner struct {
	ds       *appsv1.DaemonSet
	state    State
	minReady time.Duration
	places   []*place             // by name
	deleting map[*corev1.Pod]bool // pods that the plan deletes
	plan     Actions
}

// Plan returns the next step for a set.
func Plan(ds *appsv1.DaemonSet, state State) Actions {
	p := &planner{
		ds: ds, state: state, minReady: time.Duration(ds.Spec.MinReadySeconds) * time.Second,
		deleting: map[*corev1.Pod]bool{},
	}
	p.arrange()
	if ds.DeletionTimestamp == nil {
		p.manage()
		if ds.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
			p.roll()
		}
		p.collect()
	}
	p.plan.Status = p.status()
	return p.plan
}

// arrange groups the pods by node. A pod that is not bound and was not created for a
// particular node, such as an adopted one, is left out until it is bound.
func (p *planner) arrange() {
	fits := newFitter(p.ds)
	at := make(map[string]*place, len(p.state.Nodes))
	for _, n := range p.state.Nodes {
		at[n.Name] = &place{name: n.Name, fit: fits.on(n)}
		p.places = append(p.places, at[n.Name])
	}
	for _, pod := range p.state.Pods {
		name := nodeOf(pod)
		if name == "" {
			continue
		}
		if at[name] == nil {
			// The node is gone, so the pod is deleted: the zero fit keeps nothing.
			at[name] = &place{name: name}
			p.places = append(p.places, at[name])
		}
		at[name].pods = append(at[name].pods, pod)
	}
	slices.SortFunc(p.places, func(a, b *place) int { return cmp.Compare(a.name, b.name) })
	for _, l := range p.places {
		slices.SortFunc(l.pods, older)
	}
}

// older orders the pods of a node by which to keep: bound pods before unbound ones,
// then by age, oldest first.
func older(a, b *corev1.Pod) int {
	bound := func(p *corev1.Pod) int {
		if p.Spec.NodeName == "" {
			return 1
		}
		return 0
	}
	return cmp.Or(bound(a)-bound(b), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}

// manage creates missing pods, and deletes pods that are finished, surplus, or on nodes
// where they do not belong.
func (p *planner) manage() {
	for _, l := range p.places {
		switch {
		case l.fit.run && len(l.pods) == 0:
			l.create = true
		case l.fit.keep:
			p.prune(l)
		default:
			for _, pod := range l.pods {
				p.remove(pod)
			}
		}
	}
}

// prune deletes a node's finished pods and all others but one, or but two during a
// rollout with surge.
func (p *planner) prune(l *place) {
	var running []*corev1.Pod
	for _, pod := range l.pods {
		switch {
		case pod.DeletionTimestamp != nil:
		case pod.Status.Phase == corev1.PodFailed:
			p.replaceFailed(l, pod)
		case pod.Status.Phase == corev1.PodSucceeded:
			p.event(false, "SucceededDaemonPod", "Found succeeded daemon pod %s/%s on node %s, will try to delete it", pod.Namespace, pod.Name, l.name)
			p.remove(pod)
		default:
			running = append(running, pod)
		}
	}
	if len(running) < 2 {
		return
	}
	if surge, _ := p.bounds(); surge == 0 {
		for _, pod := range running[1:] {
			p.remove(pod)
		}
		return
	}
	// A pod of the current template and one of an older template may run side by side
	// while the old one is ready and the new one is not yet available.
	fresh, old := p.split(running)
	for _, pods := range [][]*corev1.Pod{fresh, old} {
		if len(pods) > 1 {
			for _, pod := range pods[1:] {
				p.remove(pod)
			}
		}
	}
	if len(fresh) == 0 || len(old) == 0 {
		return
	}
	switch {
	case p.available(fresh[0]):
		p.remove(old[0])
	case !podstate.Ready(old[0]):
		// The old pod serves no traffic, so there is no reason to keep it.
		p.remove(old[0])
	}
}

func (p *planner) replaceFailed(l *place, pod *corev1.Pod) {
	if wait := p.state.Wait(l.name); wait > 0 {
		p.requeue(wait)
		return
	}
	p.event(true, "FailedDaemonPod", "Found failed daemon pod %s/%s on node %s, will try to kill it", pod.Namespace, pod.Name, l.name)
	p.plan.Failed = append(p.plan.Failed, l.name)
	p.remove(pod)
}

func (p *planner) event(warning bool, reason, format string, args ...any) {
	p.plan.Events = append(p.plan.Events, Event{warning, reason, fmt.Sprintf(format, args...)})
}

func (p *planner) remove(pod *corev1.Pod) {
	if pod.DeletionTimestamp == nil {
		p.deleting[pod] = true
	}
}

func (p *planner) requeue(after time.Duration) {
	if after > 0 && (p.plan.RequeueAfter == 0 || after < p.plan.RequeueAfter) {
		p.plan.RequeueAfter = after
	}
}

// fresh reports whether a pod was created from the current template.
func (p *planner) fresh(pod *corev1.Pod) bool { return pod.Labels[hashLabel] == p.state.Hash }

// split separates pods of the current template from older ones.
func (p *planner) split(pods []*corev1.Pod) (fresh, old []*corev1.Pod) {
	for _, pod := range pods {
		if p.fresh(pod) {
			fresh = append(fresh, pod)
		} else {
			old = append(old, pod)
		}
	}
	return fresh, old
}

// available reports whether a pod has been ready for minReadySeconds. If it is ready but
// not for long enough, available also schedules a requeue for when it will be.
func (p *planner) available(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp != nil {
		return false
	}
	ok, wait := podstate.Available(pod, p.minReady, p.state.Now)
	p.requeue(wait)
	return ok
}

// collect puts the decisions into the plan, up to burst creations and deletions. The
// rest follows in the next reconcile, once the cache shows these writes.
func (p *planner) collect() {
	for _, l := range p.places {
		if l.create && len(p.plan.Create) < burst {
			p.plan.Create = append(p.plan.Create, l.name)
		}
		for _, pod := range l.pods {
			if p.deleting[pod] && len(p.plan.Delete) < burst {
				p.plan.Delete = append(p.plan.Delete, pod)
			}
		}
	}
	used := map[string]bool{p.state.Hash: true}
	for _, pod := range p.state.Pods {
		used[pod.Labels[hashLabel]] = true
	}
	p.plan.Forget = history.Surplus(p.state.Revisions, p.ds.Spec.RevisionHistoryLimit,
		func(r *appsv1.ControllerRevision) bool { return used[history.Hash(r)] })
}

// status computes the set's status from its pods before the plan is carried out.
func (p *planner) status() appsv1.DaemonSetStatus {
	s := appsv1.DaemonSetStatus{
		ObservedGeneration: p.ds.Generation, CollisionCount: p.ds.Status.CollisionCount, Conditions: p.ds.Status.Conditions,
	}
	for _, l := range p.places {
		switch {
		case l.fit.run:
			s.DesiredNumberScheduled++
			if len(l.pods) > 0 {
				s.CurrentNumberScheduled++
				p.count(l, &s)
			}
		case len(l.pods) > 0:
			s.NumberMisscheduled++
		}
	}
	s.NumberUnavailable = s.DesiredNumberScheduled - s.NumberAvailable
	return s
}

// count adds a node's pods to s. The node counts as ready, available or updated if any
// one of its pods is.
func (p *planner) count(l *place, s *appsv1.DaemonSetStatus) {
	var ready, available, updated bool
	for _, pod := range l.pods {
		if pod.DeletionTimestamp != nil {
			continue
		}
		ready = ready || podstate.Ready(pod)
		available = available || p.available(pod)
		updated = updated || p.fresh(pod)
	}
	for n, is := range map[*int32]bool{&s.NumberReady: ready, &s.NumberAvailable: available, &s.UpdatedNumberScheduled: updated} {
		if is {
			*n++
		}
	}
}

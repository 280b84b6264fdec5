package deployment

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Actions lists the writes of one reconcile.
type Actions struct {
	// Create is the new set, or nil. Update lists the sets to write, and Delete those
	// beyond the history limit.
	Create *appsv1.ReplicaSet
	Update []*appsv1.ReplicaSet
	Delete []*appsv1.ReplicaSet
	// Revision is the deployment's revision annotation; empty leaves it.
	Revision string
	Status   appsv1.DeploymentStatus
	Events   []Event
	// RequeueAfter is how long until the passing of time alone may change the plan; 0
	// means never.
	RequeueAfter time.Duration
}

// Event is an event to record on success.
type Event struct{ Reason, Message string }

// rollout is a plan being made. Its sets are copied before they are changed.
type rollout struct {
	d      *appsv1.Deployment
	now    time.Time
	before map[string]*appsv1.ReplicaSet // as they are, by name
	sets   []*appsv1.ReplicaSet          // oldest first
	newest *appsv1.ReplicaSet            // that of the present template, or nil
	plan   Actions
	status appsv1.DeploymentStatus // conditions that the making of the plan sets
}

// Plan returns the next step for a deployment with these sets. podsRunning reports
// whether a set has pods that have not ended.
func Plan(d *appsv1.Deployment, sets []*appsv1.ReplicaSet, podsRunning func(*appsv1.ReplicaSet) bool, now time.Time) Actions {
	r := &rollout{d: d, now: now, before: map[string]*appsv1.ReplicaSet{}, sets: slices.Clone(sets), status: *d.Status.DeepCopy()}
	slices.SortFunc(r.sets, func(a, b *appsv1.ReplicaSet) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	for i, rs := range r.sets {
		r.before[rs.Name] = rs
		r.sets[i] = rs.DeepCopy()
		if r.newest == nil && sameTemplate(&rs.Spec.Template, &d.Spec.Template) {
			r.newest = r.sets[i]
		}
	}
	switch {
	case d.DeletionTimestamp != nil:
		r.plan.Status = r.baseStatus()
	case d.Spec.Paused || r.scaled():
		r.pausedCondition()
		r.adoptRevision(false)
		r.scale()
		if d.Spec.Paused {
			r.cleanUp()
		}
		r.plan.Status = r.baseStatus()
	default:
		r.pausedCondition()
		if d.Spec.Strategy.Type == appsv1.RecreateDeploymentStrategyType {
			r.recreate(podsRunning)
		} else {
			r.adoptRevision(true)
			r.roll()
		}
		if r.complete() {
			r.cleanUp()
		}
		r.plan.Status = r.rolloutStatus()
	}
	r.collect()
	return r.plan
}

// collect puts the changed sets into the plan, those that shrink last.
func (r *rollout) collect() {
	for _, rs := range r.sets {
		old := r.before[rs.Name]
		if old == nil || slices.ContainsFunc(r.plan.Delete, func(d *appsv1.ReplicaSet) bool { return d.Name == rs.Name }) {
			continue
		}
		if replicas(old) != replicas(rs) || old.Spec.MinReadySeconds != rs.Spec.MinReadySeconds || !maps.Equal(old.Annotations, rs.Annotations) {
			r.plan.Update = append(r.plan.Update, rs)
		}
	}
	slices.SortStableFunc(r.plan.Update, func(a, b *appsv1.ReplicaSet) int {
		return cmp.Compare(replicas(b)-replicas(r.before[b.Name]), replicas(a)-replicas(r.before[a.Name]))
	})
}

// old returns all sets but the newest.
func (r *rollout) old() []*appsv1.ReplicaSet {
	return slices.DeleteFunc(slices.Clone(r.sets), func(rs *appsv1.ReplicaSet) bool { return rs == r.newest })
}

func replicas(rs *appsv1.ReplicaSet) int32 {
	if rs.Spec.Replicas == nil {
		return 1
	}
	return *rs.Spec.Replicas
}

func (r *rollout) desired() int32 {
	if r.d.Spec.Replicas == nil {
		return 1
	}
	return *r.d.Spec.Replicas
}

func total(sets []*appsv1.ReplicaSet) int32 {
	var n int32
	for _, rs := range sets {
		n += replicas(rs)
	}
	return n
}

// available returns how many pods of a set are available and will stay: a set that was
// scaled down but has not deleted pods yet counts only those that it keeps.
func available(rs *appsv1.ReplicaSet) int32 { return min(rs.Status.AvailableReplicas, replicas(rs)) }

func availableIn(sets []*appsv1.ReplicaSet) int32 {
	var n int32
	for _, rs := range sets {
		n += available(rs)
	}
	return n
}

// resize sets the number of replicas of a set and records the size of the deployment
// that it is for.
func (r *rollout) resize(rs *appsv1.ReplicaSet, to int32) {
	from := replicas(rs)
	if old := r.before[rs.Name]; old != nil {
		from = replicas(old)
	}
	r.annotateSize(rs)
	if replicas(rs) == to {
		return
	}
	rs.Spec.Replicas = &to
	r.plan.Events = slices.DeleteFunc(r.plan.Events, func(e Event) bool { return e.Reason == scaling && r.about(e, rs) })
	if from != to {
		direction := "down"
		if to > from {
			direction = "up"
		}
		r.plan.Events = append(r.plan.Events, Event{scaling, fmt.Sprintf("Scaled %s replica set %s from %d to %d", direction, rs.Name, from, to)})
	}
}

const scaling = "ScalingReplicaSet"

func (r *rollout) about(e Event, rs *appsv1.ReplicaSet) bool {
	for _, direction := range []string{"up", "down"} {
		prefix := fmt.Sprintf("Scaled %s replica set %s from ", direction, rs.Name)
		if len(e.Message) > len(prefix) && e.Message[:len(prefix)] == prefix {
			return true
		}
	}
	return false
}

// cleanUp deletes the oldest sets beyond the history limit.
func (r *rollout) cleanUp() {
	if r.d.Spec.RevisionHistoryLimit == nil {
		return
	}
	old := slices.DeleteFunc(r.old(), func(rs *appsv1.ReplicaSet) bool { return rs.DeletionTimestamp != nil })
	excess := len(old) - int(*r.d.Spec.RevisionHistoryLimit)
	if excess <= 0 {
		return
	}
	slices.SortStableFunc(old, func(a, b *appsv1.ReplicaSet) int { return cmp.Compare(revision(a), revision(b)) })
	for _, rs := range old[:excess] {
		if rs.Status.Replicas == 0 && replicas(rs) == 0 && rs.Generation <= rs.Status.ObservedGeneration {
			r.plan.Delete = append(r.plan.Delete, rs)
		}
	}
}

// recreate deletes all old pods before it starts new ones.
func (r *rollout) recreate(podsRunning func(*appsv1.ReplicaSet) bool) {
	r.adoptRevision(false)
	running := false
	for _, rs := range r.old() {
		if replicas(rs) > 0 {
			r.resize(rs, 0)
			running = true
		}
		running = running || rs.Status.Replicas > 0 || podsRunning(rs)
	}
	if running {
		return
	}
	r.adoptRevision(true)
	r.resize(r.newest, r.desired())
}

// controllerRef returns the controller reference for a deployment's sets.
func controllerRef(d *appsv1.Deployment) metav1.OwnerReference {
	return *metav1.NewControllerRef(d, appsv1.SchemeGroupVersion.WithKind("Deployment"))
}

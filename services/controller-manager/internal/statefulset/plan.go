package statefulset

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/controller-manager/internal/history"
	"keelson.dev/services/controller-manager/internal/podstate"
)

// State is what a plan is made of.
type State struct {
	Pods      []*corev1.Pod
	Revisions []*appsv1.ControllerRevision
	// Update is the revision of the present template.
	Update *appsv1.ControllerRevision
	// Claim finds a claim by name; nil if there is none.
	Claim func(name string) *corev1.PersistentVolumeClaim
	Now   time.Time
}

// Plan is what to write.
type Plan struct {
	// CreateClaims and UpdateClaims come before the pods.
	CreateClaims, UpdateClaims []*corev1.PersistentVolumeClaim
	Create, Delete             []*corev1.Pod
	// Label are pods that lack the labels of their identity.
	Label []*corev1.Pod
	// Forget are the revisions beyond the history limit.
	Forget []*appsv1.ControllerRevision
	Status appsv1.StatefulSetStatus
	// Events are warnings.
	Events []Event
	// RequeueAfter is when time alone may change the plan; 0 is never.
	RequeueAfter time.Duration
}

// Event is one to record.
type Event struct{ Reason, Message string }

type planner struct {
	set      *appsv1.StatefulSet
	state    State
	minReady time.Duration
	ordered  bool
	current  *appsv1.ControllerRevision
	// replicas are the pods by ordinal from the first, nil where there is none.
	replicas []*corev1.Pod
	// condemned are those beyond the set's size, the highest ordinal first.
	condemned []*corev1.Pod
	plan      Plan
}

// Make plans the next step of a set.
//
// In order: every ordinal gets its pod, from the lowest; pods beyond the set's size
// go, from the highest; pods of older templates are replaced, from the highest. With
// podManagementPolicy OrderedReady each step waits until the pods before it are
// available.
func Make(set *appsv1.StatefulSet, state State) (Plan, error) {
	p := &planner{
		set: set, state: state, minReady: time.Duration(set.Spec.MinReadySeconds) * time.Second,
		ordered: set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement,
	}
	p.current = p.currentRevision()
	p.arrange()
	if set.DeletionTimestamp == nil {
		if err := p.step(); err != nil {
			return Plan{}, err
		}
		p.forget()
	}
	p.retain()
	p.plan.Status = p.status()
	return p.plan, nil
}

// currentRevision is the revision that pods below the partition have.
func (p *planner) currentRevision() *appsv1.ControllerRevision {
	for _, r := range p.state.Revisions {
		if r.Name == p.set.Status.CurrentRevision {
			return r
		}
	}
	return p.state.Update
}

func (p *planner) arrange() {
	p.replicas = make([]*corev1.Pod, replicas(p.set))
	for _, pod := range p.state.Pods {
		switch n := ordinal(p.set, pod.Name); {
		case n == noOrdinal:
		case inRange(p.set, n):
			p.replicas[n-start(p.set)] = pod
		default:
			p.condemned = append(p.condemned, pod)
		}
	}
	slices.SortFunc(p.condemned, func(a, b *corev1.Pod) int {
		return cmp.Compare(ordinal(p.set, b.Name), ordinal(p.set, a.Name))
	})
}

func (p *planner) step() error {
	if done, err := p.fill(); done || err != nil {
		return err
	}
	if p.shrink() {
		return nil
	}
	if p.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		p.roll()
	}
	return nil
}

// fill gives every ordinal a pod; done is true where the other steps have to wait.
func (p *planner) fill() (done bool, err error) {
	for i, pod := range p.replicas {
		n := start(p.set) + i
		switch {
		case pod == nil:
			if err := p.create(n); err != nil {
				return true, err
			}
			done = done || p.ordered
		case podstate.Finished(pod):
			// It is replaced once it is gone, whatever its exit code was: an eviction
			// or a reboot may have ended it.
			if pod.DeletionTimestamp == nil {
				p.event("RecreatingFailedPod", "StatefulSet %s/%s is recreating failed Pod %s", p.set.Namespace, p.set.Name, pod.Name)
				p.plan.Delete = append(p.plan.Delete, pod)
			}
			done = done || p.ordered
		default:
			if pod.Status.Phase == corev1.PodPending || pod.Status.Phase == "" {
				p.createClaims(n)
			}
			if pod.DeletionTimestamp == nil && lacksIdentity(pod) {
				p.plan.Label = append(p.plan.Label, pod)
			}
			done = done || p.ordered && !p.available(pod)
		}
		if done {
			return true, nil
		}
	}
	return false, nil
}

// create creates the pod of an ordinal with its claims, unless one of them is left
// from an earlier pod and about to go with it.
func (p *planner) create(n int) error {
	for _, want := range newClaims(p.set, n) {
		if have := p.state.Claim(want.Name); have != nil && p.stale(have, n) {
			return nil
		}
	}
	p.createClaims(n)
	r := p.state.Update
	if i := n - start(p.set); i < p.partition() && p.current != nil {
		r = p.current
	}
	template, err := history.Template(r)
	if err != nil {
		return err
	}
	p.plan.Create = append(p.plan.Create, newPod(p.set, template, r.Name, n))
	return nil
}

func (p *planner) createClaims(n int) {
	for _, c := range newClaims(p.set, n) {
		if p.state.Claim(c.Name) == nil {
			p.plan.CreateClaims = append(p.plan.CreateClaims, c)
		}
	}
}

// stale reports whether a claim is being deleted, or will be with a pod of the
// ordinal's name that is gone.
func (p *planner) stale(c *corev1.PersistentVolumeClaim, n int) bool {
	if c.DeletionTimestamp != nil {
		return true
	}
	for _, ref := range c.OwnerReferences {
		if ref.Kind == "Pod" && ref.Name == podName(p.set, n) {
			return true
		}
	}
	return false
}

// partition is the number of ordinals, from the first, that keep the current
// revision.
func (p *planner) partition() int {
	if u := p.set.Spec.UpdateStrategy.RollingUpdate; u != nil && u.Partition != nil {
		return int(*u.Partition)
	}
	return 0
}

// shrink deletes pods beyond the set's size, one at a time where they are ordered;
// it returns true where the rollout has to wait.
func (p *planner) shrink() bool {
	for _, pod := range p.condemned {
		if pod.DeletionTimestamp != nil {
			if p.ordered {
				return true
			}
			continue
		}
		// A pod that is not available may be the very one to go, but not while one
		// below it is not available either.
		if p.ordered && !p.available(pod) && p.firstUnavailable() != pod {
			return true
		}
		p.plan.Delete = append(p.plan.Delete, pod)
		if p.ordered {
			return true
		}
	}
	return false
}

// firstUnavailable is the pod of the lowest ordinal, the set's own before the
// condemned, that is not available.
func (p *planner) firstUnavailable() *corev1.Pod {
	for _, pod := range p.replicas {
		if pod != nil && !p.available(pod) {
			return pod
		}
	}
	for _, pod := range slices.Backward(p.condemned) {
		if !p.available(pod) {
			return pod
		}
	}
	return nil
}

// maxUnavailable is how many pods a rollout may leave unavailable; percentages are
// rounded down, to at least one.
func (p *planner) maxUnavailable() int {
	u := p.set.Spec.UpdateStrategy.RollingUpdate
	if u == nil || u.MaxUnavailable == nil {
		return 1
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(u.MaxUnavailable, replicas(p.set), false)
	if err != nil {
		return 1 // validation keeps such a value out.
	}
	return max(n, 1)
}

// roll deletes pods of older templates, from the highest ordinal down to the
// partition, as long as no more than maxUnavailable are not available.
func (p *planner) roll() {
	budget := p.maxUnavailable()
	for _, pod := range p.replicas {
		if pod == nil || !p.available(pod) {
			budget--
		}
	}
	outdated := func(pod *corev1.Pod) bool {
		return pod != nil && pod.DeletionTimestamp == nil && revisionOf(pod) != p.state.Update.Name
	}
	if !p.ordered {
		// Those that serve nobody go first and take nothing from the budget.
		for i := len(p.replicas) - 1; i >= p.partition(); i-- {
			if pod := p.replicas[i]; outdated(pod) && !p.available(pod) && !podstate.Finished(pod) {
				p.plan.Delete = append(p.plan.Delete, pod)
			}
		}
	}
	for i := len(p.replicas) - 1; i >= p.partition() && budget > 0; i-- {
		if pod := p.replicas[i]; outdated(pod) && p.available(pod) {
			p.plan.Delete = append(p.plan.Delete, pod)
			budget--
		}
	}
}

func revisionOf(pod *corev1.Pod) string { return pod.Labels[appsv1.StatefulSetRevisionLabel] }

// available reports whether a pod runs and has been ready for minReadySeconds, and
// has the set looked at again when it will have been.
func (p *planner) available(pod *corev1.Pod) bool {
	if pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodRunning {
		return false
	}
	ok, wait := podstate.Available(pod, p.minReady, p.state.Now)
	if wait > 0 && (p.plan.RequeueAfter == 0 || wait < p.plan.RequeueAfter) {
		p.plan.RequeueAfter = wait
	}
	return ok
}

func (p *planner) event(reason, format string, args ...any) {
	p.plan.Events = append(p.plan.Events, Event{reason, fmt.Sprintf(format, args...)})
}

// retain makes the claims of the pods depend on what the retention policy says.
func (p *planner) retain() {
	if p.set.Spec.PersistentVolumeClaimRetentionPolicy == nil {
		return
	}
	for _, pod := range slices.Concat(p.replicas, p.condemned) {
		if pod == nil {
			continue
		}
		n := ordinal(p.set, pod.Name)
		for i := range p.set.Spec.VolumeClaimTemplates {
			c := p.state.Claim(claimName(p.set, p.set.Spec.VolumeClaimTemplates[i].Name, n))
			if c == nil || c.DeletionTimestamp != nil {
				continue
			}
			if owners := claimOwners(p.set, c, n, pod); !reflect.DeepEqual(owners, c.OwnerReferences) && len(owners)+len(c.OwnerReferences) > 0 {
				next := c.DeepCopy()
				next.OwnerReferences = owners
				p.plan.UpdateClaims = append(p.plan.UpdateClaims, next)
			}
		}
	}
}

// forget drops revisions that no pod has, beyond the history limit.
func (p *planner) forget() {
	used := map[string]bool{p.state.Update.Name: true, p.current.Name: true}
	for _, pod := range p.state.Pods {
		used[revisionOf(pod)] = true
	}
	p.plan.Forget = history.Surplus(p.state.Revisions, p.set.Spec.RevisionHistoryLimit,
		func(r *appsv1.ControllerRevision) bool { return used[r.Name] })
}

// status is the set's status for its pods as they are. When all of them are of the
// present template and ready, that becomes the current revision.
func (p *planner) status() appsv1.StatefulSetStatus {
	collisions := int32(0)
	if c := p.set.Status.CollisionCount; c != nil {
		collisions = *c
	}
	s := appsv1.StatefulSetStatus{
		ObservedGeneration: p.set.Generation, CurrentRevision: p.current.Name, UpdateRevision: p.state.Update.Name,
		CollisionCount: &collisions, Conditions: p.set.Status.Conditions,
	}
	for _, pod := range p.state.Pods {
		if ordinal(p.set, pod.Name) == noOrdinal {
			continue
		}
		s.Replicas++
		if pod.Status.Phase == corev1.PodRunning && podstate.Ready(pod) {
			s.ReadyReplicas++
			if ok, _ := podstate.Available(pod, p.minReady, p.state.Now); ok {
				s.AvailableReplicas++
			}
		}
		if pod.DeletionTimestamp != nil {
			continue
		}
		if revisionOf(pod) == s.CurrentRevision {
			s.CurrentReplicas++
		}
		if revisionOf(pod) == s.UpdateRevision {
			s.UpdatedReplicas++
		}
	}
	if p.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType &&
		s.CurrentRevision != s.UpdateRevision && p.partition() == 0 &&
		s.UpdatedReplicas == s.Replicas && s.ReadyReplicas == s.Replicas && int(s.Replicas) == replicas(p.set) {
		s.CurrentRevision, s.CurrentReplicas = s.UpdateRevision, s.UpdatedReplicas
	}
	return s
}

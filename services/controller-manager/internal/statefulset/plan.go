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

// State is the input of Plan.
type State struct {
	Pods      []*corev1.Pod
	Revisions []*appsv1.ControllerRevision
	// Update is the revision of the current template.
	Update *appsv1.ControllerRevision
	// Claim returns the claim of a name, or nil if it does not exist.
	Claim func(name string) *corev1.PersistentVolumeClaim
	Now   time.Time
}

// Actions lists the writes of one reconcile.
type Actions struct {
	// CreateClaims and UpdateClaims are written before the pods.
	CreateClaims, UpdateClaims []*corev1.PersistentVolumeClaim
	Create, Delete             []*corev1.Pod
	// Label lists the pods that lack an identity label.
	Label []*corev1.Pod
	// Forget lists the revisions to delete because they exceed the history limit.
	Forget []*appsv1.ControllerRevision
	Status appsv1.StatefulSetStatus
	// Events are recorded as warnings.
	Events []Event
	// RequeueAfter is how long until the passing of time alone may change the plan;
	// 0 means never.
	RequeueAfter time.Duration
}

// Event is a warning to record for the set.
type Event struct{ Reason, Message string }

type planner struct {
	set      *appsv1.StatefulSet
	state    State
	minReady time.Duration
	ordered  bool
	current  *appsv1.ControllerRevision
	// replicas holds the pods in the set's range, in order of ordinal, with nil for those
	// that do not exist.
	replicas []*corev1.Pod
	// condemned holds the pods outside the set's range, highest ordinal first.
	condemned []*corev1.Pod
	plan      Actions
}

// Plan returns the next step for a set.
//
// Missing pods are created first, from the lowest ordinal up. Then pods outside the
// set's range are deleted, and then pods of older templates, both from the highest
// ordinal down. With podManagementPolicy OrderedReady, each step waits until the pods
// before it are available. For a set that is being deleted only the status is updated.
func Plan(set *appsv1.StatefulSet, state State) (Actions, error) {
	p := &planner{
		set: set, state: state, minReady: time.Duration(set.Spec.MinReadySeconds) * time.Second,
		ordered: set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement,
	}
	p.current = p.currentRevision()
	p.arrange()
	if set.DeletionTimestamp == nil {
		if err := p.step(); err != nil {
			return Actions{}, err
		}
		p.retain()
		p.forget()
	}
	p.plan.Status = p.status()
	return p.plan, nil
}

// currentRevision returns the revision of status.currentRevision, which pods below the
// partition keep. It is the update revision if that one no longer exists.
func (p *planner) currentRevision() *appsv1.ControllerRevision {
	for _, r := range p.state.Revisions {
		if r.Name == p.set.Status.CurrentRevision {
			return r
		}
	}
	return p.state.Update
}

// arrange sorts the pods into replicas and condemned.
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

// fill creates missing pods and deletes finished ones so that they are recreated. done
// is true if the other steps have to wait.
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
			// The pod is recreated once it is gone, even if it succeeded: after an eviction
			// or a reboot the phase depends on the exit code alone.
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

// create creates the pod with ordinal n and its claims, unless one of the claims belongs
// to an earlier pod and is about to be deleted with it.
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

// createClaims creates the claims of ordinal n that do not exist.
func (p *planner) createClaims(n int) {
	for _, c := range newClaims(p.set, n) {
		if p.state.Claim(c.Name) == nil {
			p.plan.CreateClaims = append(p.plan.CreateClaims, c)
		}
	}
}

// stale reports whether a claim is being deleted, or is owned by an earlier pod of
// ordinal n, with which the garbage collector will delete it.
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

// partition returns how many pods, from the lowest ordinal, keep the current revision.
func (p *planner) partition() int {
	if u := p.set.Spec.UpdateStrategy.RollingUpdate; u != nil && u.Partition != nil {
		return int(*u.Partition)
	}
	return 0
}

// shrink deletes the condemned pods, one at a time if the set is ordered. It returns
// true if the rollout has to wait.
func (p *planner) shrink() bool {
	for _, pod := range p.condemned {
		if pod.DeletionTimestamp != nil {
			if p.ordered {
				return true
			}
			continue
		}
		// An unavailable pod is deleted only if every pod with a lower ordinal is
		// available.
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

// firstUnavailable returns the unavailable pod with the lowest ordinal, looking at the
// replicas before the condemned pods, or nil if all are available.
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

// maxUnavailable returns how many pods a rollout may make unavailable. Percentages are
// rounded down, but the result is at least 1.
func (p *planner) maxUnavailable() int {
	u := p.set.Spec.UpdateStrategy.RollingUpdate
	if u == nil || u.MaxUnavailable == nil {
		return 1
	}
	n, err := intstr.GetScaledValueFromIntOrPercent(u.MaxUnavailable, replicas(p.set), false)
	if err != nil {
		return 1 // validation rejects such a value
	}
	return max(n, 1)
}

// roll deletes pods of older templates, from the highest ordinal down to the partition,
// as long as at most maxUnavailable pods are unavailable.
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
		// Unavailable pods are replaced first. They are already counted in the budget.
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

// available reports whether a pod is running and has been ready for minReadySeconds. If
// it is ready but not for long enough, available also schedules a requeue for when it
// will be.
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

// retain updates the owners of the existing pods' claims to match the retention policy.
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

// forget deletes the revisions that no pod uses and that exceed the history limit.
func (p *planner) forget() {
	used := map[string]bool{p.state.Update.Name: true, p.current.Name: true}
	for _, pod := range p.state.Pods {
		used[revisionOf(pod)] = true
	}
	p.plan.Forget = history.Surplus(p.state.Revisions, p.set.Spec.RevisionHistoryLimit,
		func(r *appsv1.ControllerRevision) bool { return used[r.Name] })
}

// status computes the set's status from its pods before the plan is carried out. Once
// all pods are ready and of the current template, the update revision becomes the
// current revision, whatever the update strategy and partition are.
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
	if s.UpdatedReplicas == s.Replicas && s.ReadyReplicas == s.Replicas && int(s.Replicas) == replicas(p.set) {
		s.CurrentRevision, s.CurrentReplicas = s.UpdateRevision, s.UpdatedReplicas
	}
	return s
}

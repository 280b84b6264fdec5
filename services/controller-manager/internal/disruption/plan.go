package disruption

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/controller-manager/internal/podstate"
)

// deletionTimeout is how long an evicted pod that is not being deleted counts as lost.
// After that, the deletion is assumed to have failed. The value is Kubernetes'.
const deletionTimeout = 2 * time.Minute

// retryUncounted is the time until a budget whose pods could not be counted is tried again.
const retryUncounted = 30 * time.Second

// Scale is the controller of a pod and the number of pods that it wants. The zero value
// means that the pod has no controller.
type Scale struct {
	UID      types.UID
	Replicas int
}

// Scales returns the scale of a pod's controller. It fails if the pod has a controller that
// does not exist or whose kind has no scale.
type Scales func(*corev1.Pod) (Scale, error)

// Actions lists the writes of one reconcile.
type Actions struct {
	Status policyv1.PodDisruptionBudgetStatus
	Events []Event
	// RequeueAfter is the time until an evicted pod no longer counts as lost; 0 means
	// never.
	RequeueAfter time.Duration
	// GivenUp lists the evicted pods that the budget no longer counts as lost although they
	// are not being deleted.
	GivenUp []*corev1.Pod
}

// Event is an event to record.
type Event struct {
	// Pod is what the event is about; nil means the budget.
	Pod             *corev1.Pod
	Warning         bool
	Reason, Message string
}

type planner struct {
	b     *policyv1.PodDisruptionBudget
	pods  []*corev1.Pod
	scale Scales
	now   time.Time
	plan  Actions
}

// Plan computes the status of a budget that selects these pods.
func Plan(b *policyv1.PodDisruptionBudget, pods []*corev1.Pod, scale Scales, now time.Time) Actions {
	p := &planner{b: b, pods: pods, scale: scale, now: now, plan: Actions{Status: *b.Status.DeepCopy()}}
	s := &p.plan.Status
	if len(pods) == 0 {
		p.event(false, "NoPods", "No matching pods found")
	}
	expected, desired, err := p.expected()
	if err != nil {
		p.event(true, "CalculateExpectedPodCountFailed", "Failed to calculate the number of expected pods: %v", err)
		// The last number is out of date, so no eviction is allowed on it.
		s.DisruptionsAllowed, s.ObservedGeneration = 0, b.Generation
		p.condition(metav1.ConditionFalse, policyv1.SyncFailedReason, err.Error())
		p.plan.RequeueAfter = retryUncounted
		return p.plan
	}
	p.settle()
	healthy := 0
	for _, pod := range pods {
		if _, lost := s.DisruptedPods[pod.Name]; !lost && pod.DeletionTimestamp == nil && podstate.Ready(pod) {
			healthy++
		}
	}
	allowed := max(healthy-desired, 0)
	if expected <= 0 {
		allowed = 0
	}
	s.CurrentHealthy, s.DesiredHealthy, s.ExpectedPods = int32(healthy), int32(desired), int32(expected) //nolint:gosec // numbers of pods.
	s.DisruptionsAllowed, s.ObservedGeneration = int32(allowed), b.Generation                            //nolint:gosec // as above.
	if allowed > 0 {
		p.condition(metav1.ConditionTrue, policyv1.SufficientPodsReason, "")
	} else {
		p.condition(metav1.ConditionFalse, policyv1.InsufficientPodsReason, "")
	}
	return p.plan
}

func (p *planner) event(warning bool, reason, format string, args ...any) {
	p.plan.Events = append(p.plan.Events, Event{Warning: warning, Reason: reason, Message: fmt.Sprintf(format, args...)})
}

func (p *planner) condition(status metav1.ConditionStatus, reason, message string) {
	meta.SetStatusCondition(&p.plan.Status.Conditions, metav1.Condition{
		Type: policyv1.DisruptionAllowedCondition, Status: status, Reason: reason, Message: message,
		ObservedGeneration: p.b.Generation, LastTransitionTime: metav1.NewTime(p.now),
	})
}

// expected returns how many pods there should be, and how many of them must be healthy.
// For a numeric minAvailable the first is the number of selected pods; for
// maxUnavailable and percentages it is the number that the pods' controllers want.
func (p *planner) expected() (expected, desired int, err error) {
	least, most := p.b.Spec.MinAvailable, p.b.Spec.MaxUnavailable
	if most == nil && (least == nil || least.Type == intstr.Int) {
		if least != nil {
			desired = least.IntValue()
		}
		return len(p.pods), desired, nil
	}
	if expected, err = p.wanted(); err != nil {
		return 0, 0, err
	}
	if most != nil {
		n, err := intstr.GetScaledValueFromIntOrPercent(most, expected, true)
		return expected, max(expected-n, 0), err
	}
	desired, err = intstr.GetScaledValueFromIntOrPercent(least, expected, true)
	return expected, desired, err
}

// wanted returns the total number of pods that the pods' controllers want. Pods without
// a controller are not counted.
func (p *planner) wanted() (int, error) {
	controllers := map[types.UID]int{}
	unmanaged := 0
	for _, pod := range p.pods {
		s, err := p.scale(pod)
		if err != nil {
			return 0, err
		}
		if s.UID == "" {
			unmanaged++
			continue
		}
		controllers[s.UID] = s.Replicas
	}
	if unmanaged > 0 {
		p.event(true, "UnmanagedPods", "Pods selected by this PodDisruptionBudget (selector: %s) were found to be unmanaged. As a result, "+
			"the status of the PDB cannot be calculated correctly, which may result in undefined behavior. "+
			"To account for these pods please set \".spec.minAvailable\" field of the PDB to an integer value.",
			metav1.FormatLabelSelector(p.b.Spec.Selector))
	}
	total := 0
	for _, n := range controllers {
		total += n
	}
	return total, nil
}

// settle removes from status.disruptedPods the pods that are gone, are being deleted, or
// were not deleted within deletionTimeout.
func (p *planner) settle() {
	evicted := p.b.Status.DisruptedPods
	p.plan.Status.DisruptedPods = nil
	for _, pod := range p.pods {
		at, ok := evicted[pod.Name]
		if !ok || pod.DeletionTimestamp != nil {
			continue
		}
		left := at.Add(deletionTimeout).Sub(p.now)
		if left <= 0 {
			p.event(true, "NotDeleted", "Pod was expected by PDB %s/%s to be deleted but it wasn't", p.b.Namespace, p.b.Name)
			p.plan.Events[len(p.plan.Events)-1].Pod = pod
			p.plan.GivenUp = append(p.plan.GivenUp, pod)
			continue
		}
		if p.plan.Status.DisruptedPods == nil {
			p.plan.Status.DisruptedPods = map[string]metav1.Time{}
		}
		p.plan.Status.DisruptedPods[pod.Name] = at
		if p.plan.RequeueAfter == 0 || left < p.plan.RequeueAfter {
			p.plan.RequeueAfter = left
		}
	}
}

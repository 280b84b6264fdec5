package core

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// podEviction is pods/eviction, which deletes a pod if its PodDisruptionBudget allows it.
func podEviction() *resource.Subresource {
	budget := func(o resource.Object) *policyv1.PodDisruptionBudget { return o.(*policyv1.PodDisruptionBudget) }
	pod := func(o resource.Object) *corev1.Pod { return o.(*corev1.Pod) }
	return row.Removal[policyv1.Eviction](policyv1.SchemeGroupVersion, resource.Removal{
		Check: func(o resource.Object, name string) error {
			if o.GetName() != name {
				return apierrors.NewBadRequest("name in URL does not match name in Eviction object")
			}
			return nil
		},
		Options:  func(o resource.Object) *metav1.DeleteOptions { return o.(*policyv1.Eviction).DeleteOptions },
		Recorded: func(parent resource.Object) bool { return evicting(pod(parent)) },
		Record: func(parent resource.Object, now time.Time) {
			disrupt(pod(parent), metav1.NewTime(now))
		},
		Budget: &resource.Budget{
			Resource: budgetGVR,
			Exempt:   func(parent resource.Object) bool { return unguarded(pod(parent)) },
			Covers: func(b, parent resource.Object) bool {
				selector, err := metav1.LabelSelectorAsSelector(budget(b).Spec.Selector)
				return err == nil && selector.Matches(labels.Set(parent.GetLabels()))
			},
			Waives: func(b, parent resource.Object) bool { return !ready(pod(parent)) && unreadyMayGo(budget(b)) },
			Charge: func(b, parent resource.Object, now time.Time) error {
				if err := allows(budget(b)); err != nil {
					return err
				}
				take(budget(b), parent.GetName(), metav1.NewTime(now))
				return nil
			},
			Several: &apierrors.StatusError{ErrStatus: metav1.Status{
				Status:  metav1.StatusFailure,
				Message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
				Code:    http.StatusInternalServerError,
			}},
		},
	})
}

// Condition of an evicted pod, as in Kubernetes.
const (
	evictionReason  = "EvictionByEvictionAPI"
	evictionMessage = "Eviction API: evicting"
)

// evicting reports whether a pod says that it is being evicted.
func evicting(pod *corev1.Pod) bool {
	c := disruption(pod)
	return c != nil && c.Status == corev1.ConditionTrue && c.Reason == evictionReason && c.Message == evictionMessage
}

// disruption returns a pod's condition DisruptionTarget, or nil.
func disruption(pod *corev1.Pod) *corev1.PodCondition {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.DisruptionTarget {
			return c
		}
	}
	return nil
}

// disrupt sets the condition DisruptionTarget.
func disrupt(pod *corev1.Pod, now metav1.Time) {
	c := disruption(pod)
	if c == nil {
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget})
		c = &pod.Status.Conditions[len(pod.Status.Conditions)-1]
	}
	if c.Status == corev1.ConditionTrue {
		now = c.LastTransitionTime
	}
	*c = corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, LastTransitionTime: now,
		Reason: evictionReason, Message: evictionMessage,
	}
}

const (
	// maxDisrupted bounds the evictions that a budget's controller has not processed yet,
	// as in Kubernetes.
	maxDisrupted = 2000
	// budgetRetrySeconds is the Retry-After of a refusal that ends once the budget's
	// controller has caught up.
	budgetRetrySeconds = 10
)

var budgetGVR = policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets")

// unguarded reports whether a pod may be evicted whatever its budget says.
func unguarded(pod *corev1.Pod) bool {
	switch pod.Status.Phase {
	case corev1.PodSucceeded, corev1.PodFailed, corev1.PodPending:
		return true
	}
	return pod.DeletionTimestamp != nil
}

// ready reports whether the pod's Ready condition is true.
func ready(pod *corev1.Pod) bool {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// unreadyMayGo reports whether the budget allows unready pods to be evicted without a charge.
func unreadyMayGo(b *policyv1.PodDisruptionBudget) bool {
	if policy := b.Spec.UnhealthyPodEvictionPolicy; policy != nil && *policy == policyv1.AlwaysAllow {
		return true
	}
	return b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0
}

// take records the pod's disruption in the budget's status.
func take(b *policyv1.PodDisruptionBudget, pod string, now metav1.Time) {
	b.Status.DisruptionsAllowed--
	if b.Status.DisruptionsAllowed == 0 {
		meta.SetStatusCondition(&b.Status.Conditions, metav1.Condition{
			Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse,
			Reason: policyv1.InsufficientPodsReason, ObservedGeneration: b.Status.ObservedGeneration,
		})
	}
	if b.Status.DisruptedPods == nil {
		b.Status.DisruptedPods = map[string]metav1.Time{}
	}
	b.Status.DisruptedPods[pod] = now
}

// allows returns nil if the budget allows a disruption now, and otherwise Kubernetes' error that
// explains why it does not.
func allows(b *policyv1.PodDisruptionBudget) error {
	cause := func(err *apierrors.StatusError, message string) error {
		err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes,
			metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: message})
		return err
	}
	forbidden := func(why string) *apierrors.StatusError {
		gr := budgetGVR.GroupResource()
		gr.Resource = "poddisruptionbudget"
		return apierrors.NewForbidden(gr, b.Name, errors.New(why))
	}
	const violates = "Cannot evict pod as it would violate the pod's disruption budget."
	notNow := fmt.Sprintf("The disruption budget %s does not allow evicting pods currently", b.Name)
	s := &b.Status
	switch {
	case s.ObservedGeneration < b.Generation:
		return cause(apierrors.NewTooManyRequests(violates, budgetRetrySeconds),
			fmt.Sprintf("The disruption budget %s is still being processed by the server.", b.Name))
	case s.DisruptionsAllowed < 0:
		return cause(forbidden("pdb disruptions allowed is negative"), notNow+": pdb disruptions allowed is negative")
	case len(s.DisruptedPods) > maxDisrupted:
		return cause(forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller"),
			notNow+": too many pending evictions not confirmed by PDB controller")
	case s.DisruptionsAllowed > 0:
		return nil
	}
	failed := meta.FindStatusCondition(s.Conditions, policyv1.DisruptionAllowedCondition)
	if failed != nil && (failed.Status != metav1.ConditionFalse || failed.Message == "") {
		failed = nil
	}
	why := notNow
	switch {
	case failed != nil && failed.Reason == policyv1.SyncFailedReason:
		why += " because it failed sync: " + failed.Message
	case s.CurrentHealthy <= s.DesiredHealthy:
		why = fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", b.Name, s.DesiredHealthy, s.CurrentHealthy)
	case failed != nil:
		why += fmt.Sprintf(" (%s): %s", failed.Reason, failed.Message)
	}
	return cause(apierrors.NewTooManyRequests(violates, 0), why)
}

package pipeline

import (
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/proto/apistatus"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

const (
	// maxDisrupted bounds the evictions that a budget's controller has not processed yet,
	// as in Kubernetes.
	maxDisrupted = 2000
	// budgetRounds is the number of attempts to charge a budget or a quota. Each attempt
	// ends after maxTries conflicts, and each conflict means that another write succeeded.
	budgetRounds = 10
	// budgetRetrySeconds is the Retry-After of a refusal that ends once the budget's
	// controller has caught up.
	budgetRetrySeconds = 10
)

var budgetGVR = policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets")

// charge takes one disruption from the budget that guards the pod. It succeeds without a write
// if no budget does: the pod has ended, has not started or is being deleted, no budget selects
// it, or it is unready and the budget does not protect unready pods. It reports whether the
// budget was written.
//
// The write depends on the revision of the budget that was read. Concurrent evictions, through
// any apiservers, therefore see each other's charges, and no more pods are evicted than the
// budget allows. If the eviction fails after the charge, the budget's controller reverts it, as
// in Kubernetes: status.disruptedPods names the pod and the time.
//
// A decision based on the pod's state is still valid when the pod is deleted, because the delete
// depends on the pod's revision: if the pod has changed, the eviction is planned again.
func (p *Pipeline) charge(c *change, pod *corev1.Pod) (charged bool, err error) {
	if unguarded(pod) {
		return false, nil
	}
	budget, err := p.budgetOf(c, pod)
	if err != nil || budget == nil {
		return false, err
	}
	if !ready(pod) && unreadyMayGo(budget) {
		return false, nil
	}
	for range budgetRounds {
		if err = p.decrement(c, pod, budget.Name); !outrun(err) {
			if apierrors.IsNotFound(err) {
				return false, nil // the budget has been deleted
			}
			return err == nil, err
		}
	}
	return false, apierrors.NewTimeoutError(fmt.Sprintf("couldn't update PodDisruptionBudget %q due to conflicts", budget.Name), budgetRetrySeconds)
}

// outrun reports whether a write failed only because of conflicts with other writers, so that
// it may be tried again.
func outrun(err error) bool {
	return apierrors.IsConflict(err) && !apierrors.HasStatusCause(err, apistatus.CauseFenced)
}

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

// budgetOf returns the budget that selects the pod, or nil if there is none. It fails if there
// are several.
func (p *Pipeline) budgetOf(c *change, pod *corev1.Pod) (*policyv1.PodDisruptionBudget, error) {
	k := p.cfg.Table.ByResource(budgetGVR)
	if k == nil {
		return nil, nil
	}
	// The cache must contain every budget that was created before this request.
	if err := p.wait(c.ctx, k, 0); err != nil {
		return nil, err
	}
	var found *policyv1.PodDisruptionBudget
	more := false
	p.place(k).Cache.Kind(k).Snapshot().Ascend(k.Prefix(pod.Namespace), "", func(item *watchcache.Item) bool {
		b, ok := item.Object.(*policyv1.PodDisruptionBudget)
		if !ok {
			return true
		}
		selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
		if err != nil || !selector.Matches(labels.Set(pod.Labels)) {
			return true
		}
		more = found != nil
		found = b
		return !more
	})
	if more {
		return nil, &apierrors.StatusError{ErrStatus: metav1.Status{
			Status:  metav1.StatusFailure,
			Message: "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
			Code:    500,
		}}
	}
	return found, nil
}

// decrement takes one disruption from the budget by a write of its status.
func (p *Pipeline) decrement(c *change, pod *corev1.Pod, name string) error {
	k := p.cfg.Table.ByResource(budgetGVR)
	status := k.Subresources["status"]
	b := &change{
		ctx: c.ctx, kind: k, rules: status.View, user: itself,
		target: Target{Resource: budgetGVR, Namespace: pod.Namespace, Name: name, Subresource: "status"},
		key:    k.Key(pod.Namespace, name),
		opts:   WriteOptions{DryRun: c.opts.DryRun, FieldManager: ownManager},
	}
	b.plan = func(cur *watchcache.Item) (*step, error) {
		if cur == nil {
			return nil, apierrors.NewNotFound(budgetGVR.GroupResource(), name)
		}
		budget, ok := cur.Object.DeepCopyObject().(*policyv1.PodDisruptionBudget)
		if !ok {
			return nil, fmt.Errorf("poddisruptionbudgets %q: expected a PodDisruptionBudget, got %T", name, cur.Object)
		}
		if err := allows(budget); err != nil {
			return nil, err
		}
		take(budget, pod.Name, metav1.NewTime(p.cfg.Now()))
		return p.planUpdate(b, cur, budget, true)
	}
	p.run(c.ctx, b)
	return b.err
}

// itself is the user of the writes that the apiserver makes on behalf of a request, such as
// charges, and ownManager their field manager, as in Kubernetes.
var itself = request.User{Name: "system:apiserver", Groups: []string{"system:masters", "system:authenticated"}}

const ownManager = "kube-apiserver"

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

// guard charges the pod's budget unless the request has charged it already. It sets *charged if
// the budget was written.
func (p *Pipeline) guard(c *change, obj resource.Object, charged *bool) error {
	pod, ok := obj.(*corev1.Pod)
	if !ok || *charged {
		return nil
	}
	took, err := p.charge(c, pod)
	*charged = took
	return err
}

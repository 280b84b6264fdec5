package pipeline

import (
	"context"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

var evictionGVK = policyv1.SchemeGroupVersion.WithKind("Eviction")

// newEviction returns the change of the delete that an eviction requests.
func (p *Pipeline) newEviction(ctx context.Context, k *resource.Kind, t Target, b Body, o WriteOptions) (*change, error) {
	obj, warnings, err := p.decodePosted(evictionGVK, func() resource.Object { return &policyv1.Eviction{} }, b, o)
	if err != nil {
		return nil, err
	}
	e := obj.(*policyv1.Eviction)
	if e.Name != t.Name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	if err := checkPlace(k, t, e); err != nil {
		return nil, err
	}
	d := DeleteOptions{WriteOptions: o}
	if e.DeleteOptions != nil {
		d.Preconditions = e.DeleteOptions.Preconditions
		d.GracePeriodSeconds = e.DeleteOptions.GracePeriodSeconds
		d.PropagationPolicy = e.DeleteOptions.PropagationPolicy
		d.OrphanDependents = e.DeleteOptions.OrphanDependents //nolint:staticcheck // clients still send it
		d.DryRun = d.DryRun || len(e.DeleteOptions.DryRun) > 0
	}
	t.Subresource = ""
	c, err := p.deletion(ctx, k, t, d)
	if err != nil {
		return nil, err
	}
	recorded := false // whether the previous write of this change recorded the reason in the pod
	charged := false  // whether the pod's disruption budget was charged
	c.plan = func(cur *watchcache.Item) (*step, error) {
		c.warn = slices.Clone(warnings)
		if recorded && d.Preconditions != nil && d.Preconditions.ResourceVersion != nil {
			// The requested state existed, and the previous write of this change has replaced it.
			now := *d.Preconditions
			now.ResourceVersion = new(cur.Object.GetResourceVersion())
			d.Preconditions = &now
		}
		recorded = false
		s, err := p.planEviction(c, cur, d)
		if err == nil {
			// After all other checks, so that a refused eviction takes nothing from the budget.
			err = p.guard(c, cur.Object, &charged)
		}
		if err != nil {
			return nil, err
		}
		if s.more {
			s.finish = append(s.finish, func(ok bool) { recorded = ok })
			return s, nil
		}
		s.answer = func(out *Outcome) {
			out.Item = nil
			out.Status = &metav1.Status{Status: metav1.StatusSuccess, Code: 201}
			out.Created = true
		}
		return s, nil
	}
	return c, nil
}

// planEviction plans a delete that first records its reason in the pod. If the pod is removed at
// once, that takes a write of its own, so that watchers see the reason in the pod's last state.
func (p *Pipeline) planEviction(c *change, cur *watchcache.Item, d DeleteOptions) (*step, error) {
	s, err := p.planDelete(c, cur, d)
	if err != nil || d.DryRun {
		return s, err
	}
	if s.gone {
		if evicting(cur.Object) != nil {
			return s, nil
		}
		s.gone, s.more, s.keepTrace = false, true, true
		s.obj = cur.Object.DeepCopyObject().(resource.Object)
	}
	p.disrupt(s.obj)
	return s, nil
}

// Condition of an evicted pod, as in Kubernetes.
const (
	evictionReason  = "EvictionByEvictionAPI"
	evictionMessage = "Eviction API: evicting"
)

// evicting returns the condition of a pod that is being evicted, or nil.
func evicting(obj resource.Object) *corev1.PodCondition {
	c := disruption(obj)
	if c == nil || c.Status != corev1.ConditionTrue || c.Reason != evictionReason || c.Message != evictionMessage {
		return nil
	}
	return c
}

func disruption(obj resource.Object) *corev1.PodCondition {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return nil
	}
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.DisruptionTarget {
			return c
		}
	}
	return nil
}

// disrupt sets the condition DisruptionTarget.
func (p *Pipeline) disrupt(obj resource.Object) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	c := disruption(pod)
	if c == nil {
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget})
		c = &pod.Status.Conditions[len(pod.Status.Conditions)-1]
	}
	at := metav1.NewTime(p.cfg.Now().Truncate(time.Second))
	if c.Status == corev1.ConditionTrue {
		at = c.LastTransitionTime
	}
	*c = corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, LastTransitionTime: at,
		Reason: evictionReason, Message: evictionMessage,
	}
}

package pipeline

import (
	"context"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

var bindingGVK = corev1.SchemeGroupVersion.WithKind("Binding")

// newBinding returns the change that assigns a pod to its node. It is the scheduler's hot path:
// no defaults, no validation of the pod, no managed fields.
func (p *Pipeline) newBinding(ctx context.Context, k *resource.Kind, t Target, b Body, o WriteOptions) (*change, error) {
	obj, warnings, err := p.decodePosted(bindingGVK, func() resource.Object { return &corev1.Binding{} }, b, o)
	if err != nil {
		return nil, err
	}
	binding := obj.(*corev1.Binding)
	c := &change{
		ctx: ctx, target: t, kind: k, rules: &k.Rules, opts: o, warn: warnings,
		user: request.UserFrom(ctx), key: k.Key(t.Namespace, t.Name), shares: true,
	}
	if err := checkBinding(t, binding); err != nil {
		p.fail(c, err)
		return c, nil
	}
	c.plan = func(cur *watchcache.Item) (*step, error) { return p.planBinding(c, cur, binding) }
	return c, nil
}

func checkBinding(t Target, b *corev1.Binding) error {
	if b.Name != "" && b.Name != t.Name {
		return apierrors.NewBadRequest("name in URL does not match name in Binding object")
	}
	if b.Namespace != "" && b.Namespace != t.Namespace {
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	var errs field.ErrorList
	path := field.NewPath("target")
	if b.Target.Kind != "" && b.Target.Kind != "Node" {
		errs = append(errs, field.NotSupported(path.Child("kind"), b.Target.Kind, []string{"Node", "<empty>"}))
	}
	if b.Target.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(bindingGVK.GroupKind(), b.Name, errs)
	}
	return nil
}

func (p *Pipeline) planBinding(c *change, cur *watchcache.Item, b *corev1.Binding) (*step, error) {
	if cur == nil {
		return nil, apierrors.NewNotFound(c.gr(), c.target.Name)
	}
	old, ok := cur.Object.(*corev1.Pod)
	if !ok {
		return nil, fmt.Errorf("%T cannot be bound", cur.Object)
	}
	if err := bindable(c, old, b); err != nil {
		return nil, err
	}
	a := c.attributes(admission.Create, b, nil)
	if err := p.cfg.Admission.Admit(c.ctx, a); err != nil {
		return nil, c.admissionError(b, err)
	}
	if err := p.cfg.Admission.Validate(c.ctx, a); err != nil {
		return nil, c.admissionError(b, err)
	}
	// Only what changes is copied. The rest remains shared with the old state, which is never
	// modified.
	pod := *old
	pod.Spec.NodeName = b.Target.Name
	if len(b.Annotations) > 0 {
		pod.Annotations = maps.Clone(old.Annotations)
		if pod.Annotations == nil {
			pod.Annotations = make(map[string]string, len(b.Annotations))
		}
		maps.Copy(pod.Annotations, b.Annotations)
	}
	copyTopology(&pod, b.Labels)
	setScheduled(&pod, metav1.NewTime(p.cfg.Now().Truncate(1e9)))
	s := &step{obj: &pod, expect: cur.Revision, keepTrace: true}
	s.answer = func(out *Outcome) {
		out.Item = nil
		out.Status = &metav1.Status{Status: metav1.StatusSuccess, Code: 201}
		out.Created = true
	}
	return s, nil
}

// bindable checks, like Kubernetes' BindingREST, whether the pod may be bound.
func bindable(c *change, pod *corev1.Pod, b *corev1.Binding) error {
	conflict := func(format string, args ...any) error {
		return apierrors.NewConflict(c.gr(), c.target.Name, fmt.Errorf(format, args...))
	}
	switch {
	case b.UID != "" && b.UID != pod.UID:
		return conflict("Precondition failed: UID in precondition: %v, UID in object meta: %v", b.UID, pod.UID)
	case b.ResourceVersion != "" && b.ResourceVersion != pod.ResourceVersion:
		return conflict("Precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", b.ResourceVersion, pod.ResourceVersion)
	case pod.DeletionTimestamp != nil:
		return conflict("pod %s is being deleted, cannot be assigned to a host", pod.Name)
	case pod.Spec.NodeName != "":
		return conflict("pod %v is already assigned to node %q", pod.Name, pod.Spec.NodeName)
	case len(pod.Spec.SchedulingGates) > 0:
		return conflict("pod %v has non-empty .spec.schedulingGates", pod.Name)
	}
	return nil
}

// copyTopology copies the binding's topology labels to the pod (PodTopologyLabelsAdmission).
func copyTopology(pod *corev1.Pod, labels map[string]string) {
	cloned := false
	for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion} {
		value, ok := labels[key]
		if !ok {
			continue
		}
		if !cloned {
			pod.Labels = maps.Clone(pod.Labels)
			if pod.Labels == nil {
				pod.Labels = map[string]string{}
			}
			cloned = true
		}
		pod.Labels[key] = value
	}
}

// setScheduled sets the pod's condition PodScheduled.
func setScheduled(pod *corev1.Pod, now metav1.Time) {
	want := corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: now}
	old := pod.Status.Conditions
	conditions := make([]corev1.PodCondition, 0, len(old)+1)
	found := false
	for _, c := range old {
		if c.Type == corev1.PodScheduled {
			found = true
			want.ObservedGeneration = c.ObservedGeneration
			if c.Status == corev1.ConditionTrue {
				want.LastTransitionTime = c.LastTransitionTime
			}
			c = want
		}
		conditions = append(conditions, c)
	}
	if !found {
		conditions = append(conditions, want)
	}
	pod.Status.Conditions = conditions
}

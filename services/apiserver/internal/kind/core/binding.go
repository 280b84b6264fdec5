package core

import (
	"fmt"
	"maps"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Binding returns the row of bindings, the legacy form of pods/binding.
func Binding() *resource.Kind {
	k := row.Virtual[corev1.Binding](corev1.SchemeGroupVersion, "bindings", resource.NoAction, true)
	k.Forward = &resource.Forward{Resource: corev1.SchemeGroupVersion.WithResource("pods"), Subresource: "binding"}
	return k
}

// podBinding is pods/binding, which gives a pod its node. It is the scheduler's hot path.
func podBinding() *resource.Subresource {
	return row.Change[corev1.Binding](corev1.SchemeGroupVersion, resource.Change{
		Check: func(o resource.Object, namespace, name string) error {
			return checkBinding(o.(*corev1.Binding), namespace, name)
		},
		Allowed: func(parent, o resource.Object) error { return bindable(parent.(*corev1.Pod), o.(*corev1.Binding)) },
		Apply: func(parent, o resource.Object, now time.Time) resource.Object {
			return bind(parent.(*corev1.Pod), o.(*corev1.Binding), metav1.NewTime(now))
		},
	})
}

func checkBinding(b *corev1.Binding, namespace, name string) error {
	if b.Name != name {
		return apierrors.NewBadRequest("name in URL does not match name in Binding object")
	}
	if b.Namespace != "" && b.Namespace != namespace {
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
		return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Binding").GroupKind(), b.Name, errs)
	}
	for _, message := range check.Subdomain(b.Target.Name) {
		errs = append(errs, field.Invalid(path.Child("name"), b.Target.Name, message))
	}
	if len(errs) > 0 {
		// Kubernetes returns this error without a reason.
		return &apierrors.StatusError{ErrStatus: metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusInternalServerError, Message: errs.ToAggregate().Error(),
		}}
	}
	return nil
}

// bindable checks, like Kubernetes' BindingREST, whether the pod may be bound.
func bindable(pod *corev1.Pod, b *corev1.Binding) error {
	conflict := func(format string, args ...any) error {
		return apierrors.NewConflict(corev1.Resource("pods/binding"), pod.Name, fmt.Errorf(format, args...))
	}
	precondition := func(format string, args ...any) error {
		return apierrors.NewConflict(corev1.Resource("pods"), pod.Name, fmt.Errorf(
			"StorageError: invalid object, Code: 4, Key: /registry/pods/%s/%s, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: "+format,
			append([]any{pod.Namespace, pod.Name}, args...)...))
	}
	switch {
	case b.UID != "" && b.UID != pod.UID:
		return precondition("UID in precondition: %v, UID in object meta: %v", b.UID, pod.UID)
	case b.ResourceVersion != "" && b.ResourceVersion != pod.ResourceVersion:
		return precondition("ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", b.ResourceVersion, pod.ResourceVersion)
	case pod.DeletionTimestamp != nil:
		return conflict("pod %s is being deleted, cannot be assigned to a host", pod.Name)
	case pod.Spec.NodeName != "":
		return conflict("pod %v is already assigned to node %q", pod.Name, pod.Spec.NodeName)
	case len(pod.Spec.SchedulingGates) > 0:
		return conflict("pod %v has non-empty .spec.schedulingGates", pod.Name)
	}
	return nil
}

// bind returns the pod with its node. Only what changes is copied.
func bind(old *corev1.Pod, b *corev1.Binding, now metav1.Time) *corev1.Pod {
	pod := *old
	pod.Spec.NodeName, pod.Status.NominatedNodeName = b.Target.Name, ""
	pod.Annotations = merged(old.Annotations, b.Annotations)
	pod.Labels = merged(old.Labels, b.Labels)
	setScheduled(&pod, now)
	return &pod
}

// merged returns old with the values of more, in a new map if there are any.
func merged(old, more map[string]string) map[string]string {
	if len(more) == 0 {
		return old
	}
	out := make(map[string]string, len(old)+len(more))
	maps.Copy(out, old)
	maps.Copy(out, more)
	return out
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

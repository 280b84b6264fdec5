package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"

	"keelson.dev/services/apiserver/internal/resource"
)

// Priority resolves a pod's priority class to its priority, and allows one default class only.
type Priority struct{ State State }

// Admit implements Mutator.
func (p *Priority) Admit(ctx context.Context, a *Attributes) error {
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || !a.Is("", "pods") {
		return nil
	}
	if a.Operation == Update {
		if old, ok := a.Old.(*corev1.Pod); ok {
			if pod.Spec.Priority == nil {
				pod.Spec.Priority = old.Spec.Priority
			}
			if pod.Spec.PreemptionPolicy == nil {
				pod.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
			}
		}
		return nil
	}
	if a.Operation != Create {
		return nil
	}
	class, err := p.class(ctx, pod.Spec.PriorityClassName)
	if err != nil {
		return err
	}
	value, policy := int32(0), corev1.PreemptLowerPriority
	if class != nil {
		value = class.Value
		if class.PreemptionPolicy != nil {
			policy = *class.PreemptionPolicy
		}
		pod.Spec.PriorityClassName = class.Name
	}
	if pod.Spec.Priority != nil && *pod.Spec.Priority != value {
		return fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *pod.Spec.Priority, value)
	}
	if given := pod.Spec.PreemptionPolicy; given != nil && *given != policy {
		return fmt.Errorf("the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *given, policy)
	}
	pod.Spec.Priority, pod.Spec.PreemptionPolicy = &value, &policy
	return nil
}

// class returns the named class. Without a name it returns the default class, which may be nil.
func (p *Priority) class(ctx context.Context, name string) (*schedulingv1.PriorityClass, error) {
	if name == "" {
		return p.defaultClass(), nil
	}
	obj, ok := p.State.Get("scheduling.k8s.io", "priorityclasses", "", name)
	if !ok {
		var err error
		if obj, ok, err = p.State.GetFresh(ctx, "scheduling.k8s.io", "priorityclasses", "", name); err != nil {
			return nil, err
		}
	}
	class, is := obj.(*schedulingv1.PriorityClass)
	if !ok || !is {
		return nil, fmt.Errorf("no PriorityClass with name %v was found", name)
	}
	return class, nil
}

// defaultClass returns the global default, or nil. If there are several, the lowest value wins.
func (p *Priority) defaultClass() *schedulingv1.PriorityClass {
	var found *schedulingv1.PriorityClass
	p.State.Each("scheduling.k8s.io", "priorityclasses", "", func(o resource.Object) bool {
		if c, ok := o.(*schedulingv1.PriorityClass); ok && c.GlobalDefault && (found == nil || c.Value < found.Value) {
			found = c
		}
		return true
	})
	return found
}

// Validate implements Validator.
func (p *Priority) Validate(_ context.Context, a *Attributes) error {
	class, ok := a.Object.(*schedulingv1.PriorityClass)
	if !ok || !class.GlobalDefault || a.Operation != Create && a.Operation != Update {
		return nil
	}
	if d := p.defaultClass(); d != nil && (a.Operation == Create || d.Name != class.Name) {
		return fmt.Errorf("PriorityClass %v is already marked as default. Only one default can exist", d.Name)
	}
	return nil
}

package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// RuntimeClass copies from a new pod's runtime class its overhead, and the node selector and
// tolerations of the nodes that support it. Error texts are Kubernetes'.
type RuntimeClass struct{ State State }

// Admit implements Mutator.
func (p *RuntimeClass) Admit(ctx context.Context, a *Attributes) error {
	pod, class, err := p.class(ctx, a)
	if err != nil || class == nil {
		return err
	}
	if class.Overhead != nil {
		if len(pod.Spec.Overhead) > 0 && !equality.Semantic.DeepEqual(class.Overhead.PodFixed, pod.Spec.Overhead) {
			return errOverhead
		}
		pod.Spec.Overhead = class.Overhead.PodFixed.DeepCopy()
	}
	if class.Scheduling == nil {
		return nil
	}
	if err := selectNodes(pod, class.Scheduling.NodeSelector); err != nil {
		return err
	}
	pod.Spec.Tolerations = mergeTolerations(pod.Spec.Tolerations, class.Scheduling.Tolerations)
	return nil
}

var errOverhead = errors.New("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")

// Validate implements Validator.
func (p *RuntimeClass) Validate(ctx context.Context, a *Attributes) error {
	pod, class, err := p.class(ctx, a)
	switch {
	case err != nil || pod == nil:
		return err
	case class != nil && class.Overhead != nil:
		if !equality.Semantic.DeepEqual(class.Overhead.PodFixed, pod.Spec.Overhead) {
			return errOverhead
		}
	case pod.Spec.Overhead != nil:
		return errors.New("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
	}
	return nil
}

// class returns the pod that is created and its runtime class, or nil if it names none. pod is nil
// for other writes.
func (p *RuntimeClass) class(ctx context.Context, a *Attributes) (pod *corev1.Pod, class *nodev1.RuntimeClass, err error) {
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || !a.Is("", "pods") || a.Operation != Create {
		return nil, nil, nil
	}
	if pod.Spec.RuntimeClassName == nil {
		return pod, nil, nil
	}
	name := *pod.Spec.RuntimeClassName
	obj, ok := p.State.Get("node.k8s.io", "runtimeclasses", "", name)
	if !ok {
		if obj, ok, err = p.State.GetFresh(ctx, "node.k8s.io", "runtimeclasses", "", name); err != nil {
			return nil, nil, err
		}
	}
	class, is := obj.(*nodev1.RuntimeClass)
	if !ok || !is {
		return nil, nil, fmt.Errorf("pod rejected: RuntimeClass %q not found", name)
	}
	return pod, class, nil
}

// selectNodes merges a selector into the pod's node selector, and fails if they contradict.
func selectNodes(pod *corev1.Pod, selector map[string]string) error {
	for key, value := range selector {
		if has, ok := pod.Spec.NodeSelector[key]; ok && has != value {
			return fmt.Errorf("conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", key, value, key, has)
		}
	}
	if len(selector) == 0 {
		return nil
	}
	merged := make(map[string]string, len(pod.Spec.NodeSelector)+len(selector))
	maps.Copy(merged, pod.Spec.NodeSelector)
	maps.Copy(merged, selector)
	pod.Spec.NodeSelector = merged
	return nil
}

// mergeTolerations returns both lists without the tolerations that another one includes. Of equal
// tolerations the first is kept.
func mergeTolerations(first, second []corev1.Toleration) []corev1.Toleration {
	all := append(first[:len(first):len(first)], second...)
	var merged []corev1.Toleration
	for i := range all {
		redundant := false
		for j := range all {
			if j == i || !includes(&all[j], &all[i]) {
				continue
			}
			if j < i || !includes(&all[i], &all[j]) {
				redundant = true
				break
			}
		}
		if !redundant {
			merged = append(merged, all[i])
		}
	}
	return merged
}

// includes reports whether t tolerates every taint that other tolerates.
func includes(t, other *corev1.Toleration) bool {
	switch {
	case equality.Semantic.DeepEqual(t, other):
		return true
	case t.Key != other.Key && (t.Key != "" || t.Operator != corev1.TolerationOpExists):
		return false
	case t.Effect != "" && t.Effect != other.Effect:
		return false
	case t.Effect == corev1.TaintEffectNoExecute && t.TolerationSeconds != nil &&
		(other.TolerationSeconds == nil || *other.TolerationSeconds > *t.TolerationSeconds):
		return false
	case t.Operator == corev1.TolerationOpExists:
		return true
	}
	equal := func(o corev1.TolerationOperator) bool { return o == "" || o == corev1.TolerationOpEqual }
	return equal(t.Operator) && equal(other.Operator) && t.Value == other.Value
}

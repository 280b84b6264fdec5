package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
)

// NodeTaint taints a new node as not ready, which keeps pods off it until it has reported that it
// is ready (TaintNodesByCondition).
type NodeTaint struct{}

// Admit implements Mutator.
func (NodeTaint) Admit(_ context.Context, a *Attributes) error {
	node, ok := a.Object.(*corev1.Node)
	if !ok || a.Operation != Create || !a.Is("", "nodes") {
		return nil
	}
	for _, t := range node.Spec.Taints {
		if t.Key == corev1.TaintNodeNotReady && t.Effect == corev1.TaintEffectNoSchedule {
			return nil
		}
	}
	node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule})
	return nil
}

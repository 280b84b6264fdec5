package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
)

// DefaultTolerationSeconds adds tolerations for nodes that are not ready or unreachable, for the
// given numbers of seconds, to pods without tolerations of their own for these taints.
type DefaultTolerationSeconds struct{ NotReady, Unreachable int64 }

// Admit implements Mutator.
func (p *DefaultTolerationSeconds) Admit(_ context.Context, a *Attributes) error {
	pod, ok := a.Object.(*corev1.Pod)
	if !ok || !a.Is("", "pods") || a.Operation != Create && a.Operation != Update {
		return nil
	}
	tolerate(pod, corev1.TaintNodeNotReady, p.NotReady)
	tolerate(pod, corev1.TaintNodeUnreachable, p.Unreachable)
	return nil
}

func tolerate(pod *corev1.Pod, taint string, seconds int64) {
	for i := range pod.Spec.Tolerations {
		t := &pod.Spec.Tolerations[i]
		if (t.Key == taint || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "") {
			return
		}
	}
	pod.Spec.Tolerations = append(pod.Spec.Tolerations[:len(pod.Spec.Tolerations):len(pod.Spec.Tolerations)], corev1.Toleration{
		Key: taint, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds,
	})
}

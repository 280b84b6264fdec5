package eviction

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/pod"
)

// Admit returns why a node under pressure refuses a pod, or nil if it accepts it. Critical
// pods are always accepted. Under memory pressure alone, only best-effort pods that do not
// tolerate it are refused; under any other pressure, all pods are.
func Admit(p *corev1.Pod, pressure []corev1.NodeConditionType) *pod.Refusal {
	if len(pressure) == 0 || pod.IsCritical(p) {
		return nil
	}
	if slices.Equal(pressure, []corev1.NodeConditionType{corev1.NodeMemoryPressure}) {
		if pod.QOS(p) != corev1.PodQOSBestEffort || pod.Tolerates(p, &corev1.Taint{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule}) {
			return nil
		}
	}
	return &pod.Refusal{Reason: Reason, Message: fmt.Sprintf("Pod was rejected: The node had condition: %v. ", pressure)}
}

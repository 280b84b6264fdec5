package pod

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Ending is why and how a node ends a pod that it runs. The pod's phase becomes Failed once
// all its containers have ended.
type Ending struct {
	// Reason and Message become the pod's status.reason and status.message.
	Reason, Message string
	// Conditions are set in the pod's status, at the moment the pod begins to end. Only
	// their type, status, reason and message are used.
	Conditions []corev1.PodCondition
	// Grace bounds the time between the containers' stop signals and SIGKILL. Nil means the
	// pod's own grace period, which Grace never extends.
	Grace *time.Duration
}

// Disrupted returns the condition of a pod that its node ends for a reason of the node's:
// eviction, shutdown, or the loss of its lease.
func Disrupted(message string) corev1.PodCondition {
	return corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonTerminationByKubelet, Message: message,
	}
}

// Interrupted returns the ending that an earlier agent began for a pod, as recorded in the
// pod's status, or nil. The node is the only writer of status.reason. The grace period is
// not part of the status.
func Interrupted(p *corev1.Pod) *Ending {
	if p.Status.Reason == "" || p.Status.StartTime == nil || Terminal(p) {
		return nil
	}
	e := &Ending{Reason: p.Status.Reason, Message: p.Status.Message}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Reason == corev1.PodReasonTerminationByKubelet {
			e.Conditions = append(e.Conditions, c)
		}
	}
	return e
}

package status

import (
	"fmt"
	"slices"
	"sort"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/node/internal/pod"
)

// owned are the types of the conditions that the node writes. All others are left
// untouched.
var owned = map[corev1.PodConditionType]bool{
	corev1.PodReadyToStartContainers: true,
	corev1.PodInitialized:            true,
	corev1.ContainersReady:           true,
	corev1.PodReady:                  true,
	corev1.PodScheduled:              true,
	corev1.PodResizePending:          true,
	corev1.PodResizeInProgress:       true,
}

type verdict struct {
	status          corev1.ConditionStatus
	reason, message string
}

var yes = verdict{status: corev1.ConditionTrue}

func (v View) conditions(s *corev1.PodStatus) []corev1.PodCondition {
	ready := containersReady(v.Pod, s)
	list := []struct {
		kind corev1.PodConditionType
		verdict
	}{
		{corev1.PodReadyToStartContainers, v.sandboxReady()},
		{corev1.PodInitialized, initialized(v.Pod, s)},
		{corev1.PodReady, gates(v.Pod, s, ready)},
		{corev1.ContainersReady, ready},
		{corev1.PodScheduled, yes},
	}
	now := metav1.NewTime(v.Now.Truncate(1e9))
	var out []corev1.PodCondition
	for _, want := range list {
		c := corev1.PodCondition{
			Type: want.kind, Status: want.status, Reason: want.reason, Message: want.message,
			LastTransitionTime: now, ObservedGeneration: v.Pod.Generation,
		}
		if old := condition(&v.Pod.Status, want.kind); old != nil {
			if want.kind == corev1.PodScheduled && old.Status == corev1.ConditionTrue {
				c = *old
				c.ObservedGeneration = v.Pod.Generation
			} else if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
		}
		out = append(out, c)
	}
	for _, c := range append(v.ending(), v.Resize.conditions()...) {
		c.ObservedGeneration, c.LastTransitionTime = v.Pod.Generation, now
		if old := condition(&v.Pod.Status, c.Type); old != nil && old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		out = append(out, c)
	}
	for _, c := range v.Pod.Status.Conditions {
		if !owned[c.Type] && !slices.ContainsFunc(out, func(own corev1.PodCondition) bool { return own.Type == c.Type }) {
			out = append(out, c)
		}
	}
	return out
}

// conditions returns the conditions of a resize. Both are absent when there is nothing to
// report.
func (r Resize) conditions() []corev1.PodCondition {
	var out []corev1.PodCondition
	if r.Pending != nil {
		out = append(out, corev1.PodCondition{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: r.Pending.Reason, Message: r.Pending.Message})
	}
	if r.Active {
		c := corev1.PodCondition{Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue, Message: r.Error}
		if r.Error != "" {
			c.Reason = corev1.PodReasonError
		}
		out = append(out, c)
	}
	return out
}

// ending returns the conditions that come with the reason why the node ends the pod.
func (v View) ending() []corev1.PodCondition {
	if v.Ended == nil {
		return nil
	}
	var out []corev1.PodCondition
	for _, c := range v.Ended.Conditions {
		out = append(out, corev1.PodCondition{Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message})
	}
	return out
}

func condition(s *corev1.PodStatus, kind corev1.PodConditionType) *corev1.PodCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == kind {
			return &s.Conditions[i]
		}
	}
	return nil
}

func (v View) sandboxReady() verdict {
	box := v.Runtime.Sandbox()
	if box == nil || !box.Ready || (!v.Pod.Spec.HostNetwork && len(box.IPs) == 0) {
		return verdict{status: corev1.ConditionFalse}
	}
	return yes
}

func initialized(p *corev1.Pod, s *corev1.PodStatus) verdict {
	if s.Phase == corev1.PodSucceeded {
		return verdict{corev1.ConditionTrue, "PodCompleted", ""}
	}
	begun := false
	for i := range s.ContainerStatuses {
		st := &s.ContainerStatuses[i]
		if st.State.Running != nil || st.State.Terminated != nil || st.LastTerminationState.Terminated != nil {
			begun = true
		}
	}
	var incomplete []string
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if !initDone(c, &s.InitContainerStatuses[i]) && !(begun && pod.IsSidecar(c)) {
			incomplete = append(incomplete, c.Name)
		}
	}
	if len(incomplete) > 0 {
		return verdict{corev1.ConditionFalse, "ContainersNotInitialized", "containers with incomplete status: " + joinNames(incomplete)}
	}
	return yes
}

func containersReady(p *corev1.Pod, s *corev1.PodStatus) verdict {
	switch s.Phase {
	case corev1.PodSucceeded:
		return verdict{corev1.ConditionFalse, "PodCompleted", ""}
	case corev1.PodFailed:
		return verdict{corev1.ConditionFalse, "PodFailed", ""}
	}
	var unready []string
	for i := range p.Spec.InitContainers {
		if pod.IsSidecar(&p.Spec.InitContainers[i]) && !s.InitContainerStatuses[i].Ready {
			unready = append(unready, p.Spec.InitContainers[i].Name)
		}
	}
	for i := range s.ContainerStatuses {
		if !s.ContainerStatuses[i].Ready {
			unready = append(unready, s.ContainerStatuses[i].Name)
		}
	}
	if len(unready) > 0 {
		return verdict{corev1.ConditionFalse, "ContainersNotReady", "containers with unready status: " + joinNames(unready)}
	}
	return yes
}

func gates(p *corev1.Pod, s *corev1.PodStatus, ready verdict) verdict {
	if ready.status != corev1.ConditionTrue {
		return ready
	}
	var message string
	for _, gate := range p.Spec.ReadinessGates {
		c := condition(&p.Status, gate.ConditionType)
		var text string
		switch {
		case c == nil:
			text = fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType)
		case c.Status != corev1.ConditionTrue:
			text = fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %s", gate.ConditionType, c.Status)
		default:
			continue
		}
		if message != "" {
			message += ", "
		}
		message += text
	}
	if message != "" {
		return verdict{corev1.ConditionFalse, "ReadinessGatesNotReady", message}
	}
	return yes
}

func sortConditions(list []corev1.PodCondition) {
	sort.SliceStable(list, func(i, j int) bool { return list[i].Type < list[j].Type })
}

// Owned reports whether a condition is the node's. The condition DisruptionTarget is the
// node's if the node ends the pod; otherwise it belongs to whoever evicts the pod.
func Owned(c corev1.PodCondition) bool {
	return owned[c.Type] || c.Type == corev1.DisruptionTarget && c.Reason == corev1.PodReasonTerminationByKubelet
}

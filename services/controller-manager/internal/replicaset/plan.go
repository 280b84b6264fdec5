package replicaset

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/controller-manager/internal/victim"
)

// Actions holds how many pods to create, or which ones to delete.
type Actions struct {
	Create int
	Delete []*corev1.Pod
}

// Plan compares the number of pods that a set wants with its pods. related are the
// pods whose number on a node is considered when choosing the ones to delete.
func Plan(rs *appsv1.ReplicaSet, pods, related []*corev1.Pod, now time.Time) Actions {
	var active []*corev1.Pod
	for _, p := range pods {
		if podstate.Active(p) {
			active = append(active, p)
		}
	}
	diff := len(active) - int(replicas(rs))
	switch {
	case diff < 0:
		return Actions{Create: min(-diff, burst)}
	case diff > 0:
		return Actions{Delete: victim.Order(active, related, now)[:min(diff, burst)]}
	}
	return Actions{}
}

func replicas(rs *appsv1.ReplicaSet) int32 {
	if rs.Spec.Replicas == nil {
		return 1
	}
	return *rs.Spec.Replicas
}

// Status computes the set's status from its pods, and how long until it changes because
// a ready pod becomes available.
func Status(rs *appsv1.ReplicaSet, pods []*corev1.Pod, failure error, now time.Time) (appsv1.ReplicaSetStatus, time.Duration) {
	var (
		s           = appsv1.ReplicaSetStatus{ObservedGeneration: rs.Generation}
		terminating int32
		wait        time.Duration
		template    = labels.SelectorFromSet(rs.Spec.Template.Labels)
		minReady    = time.Duration(rs.Spec.MinReadySeconds) * time.Second
	)
	for _, p := range pods {
		if podstate.Terminating(p) {
			terminating++
		}
		if !podstate.Active(p) {
			continue
		}
		s.Replicas++
		if template.Matches(labels.Set(p.Labels)) {
			s.FullyLabeledReplicas++
		}
		if !podstate.Ready(p) {
			continue
		}
		s.ReadyReplicas++
		ok, left := podstate.Available(p, minReady, now)
		if ok {
			s.AvailableReplicas++
		} else if wait == 0 || left < wait {
			wait = left
		}
	}
	s.TerminatingReplicas = &terminating
	s.Conditions = conditions(rs, s.Replicas, failure, now)
	return s, wait
}

// conditions returns the set's conditions with ReplicaFailure brought up to date. A
// condition that already holds is not rewritten for a different message.
func conditions(rs *appsv1.ReplicaSet, have int32, failure error, now time.Time) []appsv1.ReplicaSetCondition {
	var (
		out   []appsv1.ReplicaSetCondition
		found bool
	)
	for _, c := range rs.Status.Conditions {
		if c.Type == appsv1.ReplicaSetReplicaFailure {
			if failure == nil {
				continue
			}
			found = true
		}
		out = append(out, c)
	}
	if failure != nil && !found {
		reason := "FailedCreate"
		if have > replicas(rs) {
			reason = "FailedDelete"
		}
		out = append(out, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetReplicaFailure, Status: corev1.ConditionTrue, Reason: reason,
			Message: failure.Error(), LastTransitionTime: metav1.NewTime(now),
		})
	}
	return out
}

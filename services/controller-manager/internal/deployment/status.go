package deployment

import (
	"fmt"
	"math"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The reasons of conditions, which kubectl and other clients rely on.
const (
	newSetCreated    = "NewReplicaSetCreated"
	foundNewSet      = "FoundNewReplicaSet"
	newSetAvailable  = "NewReplicaSetAvailable"
	setUpdated       = "ReplicaSetUpdated"
	setCreateError   = "ReplicaSetCreateError"
	deadlineExceeded = "ProgressDeadlineExceeded"
	paused           = "DeploymentPaused"
	resumed          = "DeploymentResumed"
)

func condition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

// setCondition sets a condition. If status and reason are unchanged it is left alone;
// if only the status is unchanged it keeps its transition time.
func (r *rollout) setCondition(t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string) {
	setCondition(&r.status, t, status, reason, message, r.now)
}

func setCondition(s *appsv1.DeploymentStatus, t appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string, at time.Time) {
	now := metav1.NewTime(at)
	c := appsv1.DeploymentCondition{
		Type: t, Status: status, Reason: reason, Message: message, LastUpdateTime: now, LastTransitionTime: now,
	}
	if old := condition(s, t); old != nil {
		// The message of Progressing names the set, which changes with each rollout.
		if old.Status == status && old.Reason == reason && (t != appsv1.DeploymentProgressing || old.Message == message) {
			return
		}
		if old.Status == status {
			c.LastTransitionTime = old.LastTransitionTime
		}
	}
	s.Conditions = append(without(s.Conditions, t), c)
}

func without(conditions []appsv1.DeploymentCondition, t appsv1.DeploymentConditionType) []appsv1.DeploymentCondition {
	return slices.DeleteFunc(slices.Clone(conditions), func(c appsv1.DeploymentCondition) bool { return c.Type == t })
}

// creationFailed returns the status after the newest set could not be created.
func creationFailed(d *appsv1.Deployment, s appsv1.DeploymentStatus, err error, now time.Time) appsv1.DeploymentStatus {
	s = *s.DeepCopy()
	if old := condition(&d.Status, appsv1.DeploymentProgressing); old == nil {
		s.Conditions = without(s.Conditions, appsv1.DeploymentProgressing)
	}
	setCondition(&s, appsv1.DeploymentProgressing, corev1.ConditionFalse, setCreateError, err.Error(), now)
	return s
}

func (r *rollout) hasDeadline() bool {
	return r.d.Spec.ProgressDeadlineSeconds != nil && *r.d.Spec.ProgressDeadlineSeconds != math.MaxInt32
}

// pausedCondition records that the progress deadline is suspended, or running again.
func (r *rollout) pausedCondition() {
	if !r.hasDeadline() {
		return
	}
	c := condition(&r.status, appsv1.DeploymentProgressing)
	switch {
	case c != nil && c.Reason == deadlineExceeded:
		// A failure to progress must not be overwritten.
	case r.d.Spec.Paused && (c == nil || c.Reason != paused):
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, paused, "Deployment is paused")
	case !r.d.Spec.Paused && c != nil && c.Reason == paused:
		r.setCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, resumed, "Deployment is resumed")
	}
}

// baseStatus returns the replica counts, the Available condition and the other existing
// conditions. The counts are those that the sets report; a new set reports none.
func (r *rollout) baseStatus() appsv1.DeploymentStatus {
	var (
		s           = appsv1.DeploymentStatus{ObservedGeneration: r.d.Generation, CollisionCount: r.d.Status.CollisionCount}
		terminating int32
		known       = true
	)
	for _, rs := range r.sets {
		s.Replicas += rs.Status.Replicas
		s.ReadyReplicas += rs.Status.ReadyReplicas
		s.AvailableReplicas += rs.Status.AvailableReplicas
		if rs.Status.TerminatingReplicas != nil {
			terminating += *rs.Status.TerminatingReplicas
		} else {
			known = rs == r.plan.Create && known
		}
	}
	if known {
		s.TerminatingReplicas = &terminating
	}
	if r.newest != nil {
		s.UpdatedReplicas = r.newest.Status.Replicas
	}
	s.UnavailableReplicas = max(total(r.sets)-s.AvailableReplicas, 0)
	s.Conditions = slices.Clone(r.status.Conditions)
	_, unavailable := r.bounds()
	if s.AvailableReplicas >= r.desired()-unavailable {
		setCondition(&s, appsv1.DeploymentAvailable, corev1.ConditionTrue, "MinimumReplicasAvailable", "Deployment has minimum availability.", r.now)
	} else {
		setCondition(&s, appsv1.DeploymentAvailable, corev1.ConditionFalse, "MinimumReplicasUnavailable", "Deployment does not have minimum availability.", r.now)
	}
	return s
}

// complete reports whether the rollout is finished according to the current status of
// the sets.
func (r *rollout) complete() bool {
	s := r.baseStatus()
	return r.completeWith(&s)
}

func (r *rollout) completeWith(s *appsv1.DeploymentStatus) bool {
	return s.UpdatedReplicas == r.desired() && s.Replicas == r.desired() && s.AvailableReplicas == r.desired()
}

// rolloutStatus returns the status of a deployment that is not paused, including the
// progress of its rollout.
func (r *rollout) rolloutStatus() appsv1.DeploymentStatus {
	s := r.baseStatus()
	c := condition(&s, appsv1.DeploymentProgressing)
	what, name := r.progressing()
	settled := s.Replicas == s.UpdatedReplicas && c != nil && c.Reason == newSetAvailable && c.Message == progressed(what, name)
	if r.hasDeadline() && !settled {
		r.progress(&s)
	}
	if failure := r.failure(); failure != nil {
		setCondition(&s, appsv1.DeploymentReplicaFailure, failure.Status, failure.Reason, failure.Message, r.now)
	} else {
		s.Conditions = without(s.Conditions, appsv1.DeploymentReplicaFailure)
	}
	r.plan.RequeueAfter = r.untilDeadline(&s)
	return s
}

// progressing returns the kind and name of what a rollout brings up.
func (r *rollout) progressing() (what, name string) {
	if r.newest != nil {
		return "ReplicaSet", r.newest.Name
	}
	return "Deployment", r.d.Name
}

func progressed(what, name string) string {
	return fmt.Sprintf("%s %q has successfully progressed.", what, name)
}

func (r *rollout) progress(s *appsv1.DeploymentStatus) {
	what, name := r.progressing()
	switch {
	case r.completeWith(s):
		setCondition(s, appsv1.DeploymentProgressing, corev1.ConditionTrue, newSetAvailable, progressed(what, name), r.now)
	case r.progressed(s):
		// Each step is progress, so the deadline starts again.
		old := condition(s, appsv1.DeploymentProgressing)
		transition := metav1.NewTime(r.now)
		if old != nil && old.Status == corev1.ConditionTrue {
			transition = old.LastTransitionTime
		}
		s.Conditions = append(without(s.Conditions, appsv1.DeploymentProgressing), appsv1.DeploymentCondition{
			Type: appsv1.DeploymentProgressing, Status: corev1.ConditionTrue, Reason: setUpdated,
			Message:        fmt.Sprintf("%s %q is progressing.", what, name),
			LastUpdateTime: metav1.NewTime(r.now), LastTransitionTime: transition,
		})
	case r.timedOut(s):
		setCondition(s, appsv1.DeploymentProgressing, corev1.ConditionFalse, deadlineExceeded, fmt.Sprintf("%s %q has timed out progressing.", what, name), r.now)
	}
}

// progressed reports whether there is progress since the status that was last written.
func (r *rollout) progressed(s *appsv1.DeploymentStatus) bool {
	old := &r.d.Status
	return s.UpdatedReplicas > old.UpdatedReplicas ||
		s.Replicas-s.UpdatedReplicas < old.Replicas-old.UpdatedReplicas ||
		s.ReadyReplicas > old.ReadyReplicas ||
		s.AvailableReplicas > old.AvailableReplicas
}

func (r *rollout) timedOut(s *appsv1.DeploymentStatus) bool {
	c := condition(s, appsv1.DeploymentProgressing)
	switch {
	case c == nil || c.Reason == newSetAvailable:
		return false
	case c.Reason == deadlineExceeded:
		return true
	}
	return !r.now.Before(r.deadline(c))
}

func (r *rollout) deadline(c *appsv1.DeploymentCondition) time.Time {
	return c.LastUpdateTime.Add(time.Duration(*r.d.Spec.ProgressDeadlineSeconds) * time.Second)
}

// untilDeadline returns how long until the deadline must be checked; 0 means never.
func (r *rollout) untilDeadline(s *appsv1.DeploymentStatus) time.Duration {
	c := condition(s, appsv1.DeploymentProgressing)
	if !r.hasDeadline() || c == nil || r.completeWith(s) || c.Reason == deadlineExceeded || c.Reason == newSetAvailable {
		return 0
	}
	// A moment later, so that the second of the timestamp has passed.
	return max(r.deadline(c).Sub(r.now), 0) + time.Second
}

// failure returns the condition of a set that cannot create or delete pods, that of the
// newest set first.
func (r *rollout) failure() *appsv1.ReplicaSetCondition {
	sets := r.old()
	if r.newest != nil {
		sets = slices.Insert(sets, 0, r.newest)
	}
	for _, rs := range sets {
		for i := range rs.Status.Conditions {
			c := &rs.Status.Conditions[i]
			if c.Type == appsv1.ReplicaSetReplicaFailure && c.Status == corev1.ConditionTrue {
				return c
			}
		}
	}
	return nil
}

package job

import (
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/podstate"
)

func condition(s *batchv1.JobStatus, t batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == t {
			return &s.Conditions[i]
		}
	}
	return nil
}

// finishedCondition returns the condition Complete or Failed if one is true.
func finishedCondition(s *batchv1.JobStatus) *batchv1.JobCondition {
	for _, t := range []batchv1.JobConditionType{batchv1.JobComplete, batchv1.JobFailed} {
		if c := condition(s, t); c != nil && c.Status == corev1.ConditionTrue {
			return c
		}
	}
	return nil
}

// suspension updates the Suspended condition and the start time, from which the
// deadline counts.
func (w *work) suspension() {
	s := &w.plan.Status
	c := condition(s, batchv1.JobSuspended)
	is := c != nil && c.Status == corev1.ConditionTrue
	now := metav1.NewTime(w.now)
	switch {
	case suspended(w.j) && !is:
		w.suspend(corev1.ConditionTrue, "JobSuspended", "Job suspended")
		s.StartTime = nil
		w.plan.Events = append(w.plan.Events, Event{Reason: "Suspended", Message: "Job suspended"})
	case !suspended(w.j) && is:
		w.suspend(corev1.ConditionFalse, "JobResumed", "Job resumed")
		s.StartTime = &now
		w.again(untilDeadline(w.j))
		w.plan.Events = append(w.plan.Events, Event{Reason: "Resumed", Message: "Job resumed"})
	}
}

func (w *work) suspend(status corev1.ConditionStatus, reason, message string) {
	s := &w.plan.Status
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c batchv1.JobCondition) bool { return c.Type == batchv1.JobSuspended })
	c := w.newCondition(batchv1.JobSuspended, reason, message)
	c.Status = status
	s.Conditions = append(s.Conditions, *c)
}

// conclude writes the counts, the interim condition of a verdict, and the final
// condition once no pod is left that could still count.
func (w *work) conclude(verdict *batchv1.JobCondition) {
	s := &w.plan.Status
	if s.StartTime == nil && !suspended(w.j) {
		now := metav1.NewTime(w.now)
		s.StartTime = &now
		w.again(untilDeadline(w.j))
	}
	ready, terminating := int32(0), int32(w.terminating) //nolint:gosec // pods of a job are int32.
	for _, p := range w.active {
		if podstate.Ready(p) {
			ready++
		}
	}
	s.Active, s.Ready, s.Terminating = int32(len(w.active)), &ready, &terminating //nolint:gosec // as above.
	if verdict == nil {
		return
	}
	if condition(s, verdict.Type) == nil {
		s.Conditions = append(s.Conditions, *verdict)
	}
	uncounted := uncountedOf(s)
	if len(w.active)+w.terminating+len(w.plan.Release)+len(uncounted.Succeeded)+len(uncounted.Failed) > 0 {
		return
	}
	if verdict.Type == batchv1.JobFailureTarget {
		s.Conditions = append(s.Conditions, *w.newCondition(batchv1.JobFailed, verdict.Reason, verdict.Message))
		w.plan.Events = append(w.plan.Events, Event{Warning: true, Reason: verdict.Reason, Message: verdict.Message})
		return
	}
	final := w.newCondition(batchv1.JobComplete, verdict.Reason, verdict.Message)
	s.Conditions, s.CompletionTime = append(s.Conditions, *final), &final.LastTransitionTime
	if w.j.Spec.Completions != nil && s.Succeeded > *w.j.Spec.Completions {
		w.plan.Events = append(w.plan.Events, Event{Warning: true, Reason: "TooManySucceededPods", Message: fmt.Sprintf("%d pods succeeded where %d were needed", s.Succeeded, *w.j.Spec.Completions)})
	}
	w.plan.Events = append(w.plan.Events, Event{Reason: "Completed", Message: "Job completed"})
}

// untilDeadline returns the total time that a job may be active; 0 means no limit.
func untilDeadline(j *batchv1.Job) time.Duration {
	if j.Spec.ActiveDeadlineSeconds == nil {
		return 0
	}
	return time.Duration(*j.Spec.ActiveDeadlineSeconds) * time.Second
}

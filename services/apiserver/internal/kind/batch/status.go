package batch

import (
	batchv1 "k8s.io/api/batch/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

// validateJobStatus checks a status that a controller writes: a finished job remains finished,
// and the fields of the status are consistent.
func validateJobStatus(j, old *batchv1.Job) field.ErrorList {
	var e check.Errors
	p := field.NewPath("status")
	validateCounts(&e, &j.Status, &old.Status, p)
	validateUncounted(&e, j.Status.UncountedTerminatedPods, p.Child("uncountedTerminatedPods"))
	validateIndexes(&e, j, p)
	validateEnd(&e, j, p)
	validateTimes(&e, j, old, p)
	for t, what := range map[batchv1.JobConditionType]string{
		batchv1.JobFailed: "terminal Failed", batchv1.JobComplete: "terminal Complete",
		batchv1.JobFailureTarget: "terminal FailureTarget", batchv1.JobSuccessCriteriaMet: "SuccessCriteriaMet",
	} {
		if holds(old, t) && !holds(j, t) {
			e.Invalid(p.Child("conditions"), field.OmitValueType{}, "cannot disable the "+what+"=True condition")
		}
	}
	return e.List
}

func validateCounts(e *check.Errors, s, old *batchv1.JobStatus, p *field.Path) {
	e.AtLeastZero(p, "active", int64(s.Active))
	e.AtLeastZero(p, "succeeded", int64(s.Succeeded))
	e.AtLeastZero(p, "failed", int64(s.Failed))
	if s.Ready != nil {
		e.AtLeastZero(p, "ready", int64(*s.Ready))
		if *s.Ready > s.Active {
			e.Invalid(p.Child("ready"), *s.Ready, "cannot set more ready pods than active")
		}
	}
	if s.Terminating != nil {
		e.AtLeastZero(p, "terminating", int64(*s.Terminating))
	}
	if s.Succeeded < old.Succeeded {
		e.Invalid(p.Child("succeeded"), s.Succeeded, "cannot decrease the succeeded counter")
	}
	if s.Failed < old.Failed {
		e.Invalid(p.Child("failed"), s.Failed, "cannot decrease the failed counter")
	}
}

func validateUncounted(e *check.Errors, u *batchv1.UncountedTerminatedPods, p *field.Path) {
	if u == nil {
		return
	}
	var seen check.Seen
	each := func(uids []types.UID, child string) {
		for i, uid := range uids {
			at := p.Child(child).Index(i)
			switch {
			case uid == "":
				e.Invalid(at, uid, "must not be empty")
			case seen.Add(string(uid)):
				e.Duplicate(at, uid)
			}
		}
	}
	each(u.Succeeded, "succeeded")
	each(u.Failed, "failed")
}

func validateIndexes(e *check.Errors, j *batchv1.Job, p *field.Path) {
	s := &j.Status
	indexed := j.Spec.CompletionMode != nil && *j.Spec.CompletionMode == batchv1.IndexedCompletion
	if s.CompletedIndexes != "" {
		if !indexed {
			e.Invalid(p.Child("completedIndexes"), s.CompletedIndexes, "cannot set non-empty completedIndexes when non-indexed completion mode")
		} else if _, err := countIndexes(s.CompletedIndexes, value(j.Spec.Completions)); err != nil {
			e.Invalid(p.Child("completedIndexes"), s.CompletedIndexes, "error parsing completedIndexes: "+err.Error())
		}
	}
	if f := s.FailedIndexes; f != nil {
		if j.Spec.BackoffLimitPerIndex == nil {
			e.Invalid(p.Child("failedIndexes"), *f, "cannot set non-null failedIndexes when backoffLimitPerIndex is null")
		}
		if _, err := countIndexes(*f, value(j.Spec.Completions)); err != nil {
			e.Invalid(p.Child("failedIndexes"), *f, "error parsing failedIndexes: "+err.Error())
		}
	}
}

func validateEnd(e *check.Errors, j *batchv1.Job, p *field.Path) {
	s := &j.Status
	complete, failed := holds(j, batchv1.JobComplete), holds(j, batchv1.JobFailed)
	conditions := p.Child("conditions")
	if complete && failed {
		e.Invalid(conditions, field.OmitValueType{}, "cannot set Complete=True and Failed=true conditions")
	}
	if complete && !holds(j, batchv1.JobSuccessCriteriaMet) {
		e.Invalid(conditions, field.OmitValueType{}, "cannot set Complete=True condition without the SuccessCriteriaMet=true condition")
	}
	if failed && !holds(j, batchv1.JobFailureTarget) {
		e.Invalid(conditions, field.OmitValueType{}, "cannot set Failed=True condition without the FailureTarget=true condition")
	}
	if holds(j, batchv1.JobFailureTarget) && holds(j, batchv1.JobSuccessCriteriaMet) {
		e.Invalid(conditions, field.OmitValueType{}, "cannot set SuccessCriteriaMet=True and FailureTarget=true conditions")
	}
	if (complete || failed) && s.Active > 0 {
		e.Invalid(p.Child("active"), s.Active, "active>0 is invalid for finished job")
	}
	if (complete || failed) && s.StartTime == nil {
		e.Required(p.Child("startTime"), "startTime is required for finished job")
	}
	if complete && s.CompletionTime == nil {
		e.Required(p.Child("completionTime"), "completionTime is required for Complete jobs")
	}
	if !complete && s.CompletionTime != nil {
		e.Invalid(p.Child("completionTime"), s.CompletionTime, "cannot set completionTime when there is no Complete=True condition")
	}
	if s.StartTime != nil && s.CompletionTime != nil && s.CompletionTime.Before(s.StartTime) {
		e.Invalid(p.Child("completionTime"), s.CompletionTime, "must be equal to or after `startTime`")
	}
}

func validateTimes(e *check.Errors, j, old *batchv1.Job, p *field.Path) {
	if was := old.Status.CompletionTime; was != nil && !equality.Semantic.DeepEqual(was, j.Status.CompletionTime) {
		e.Invalid(p.Child("completionTime"), j.Status.CompletionTime, "field is immutable")
	}
	was, now := old.Status.StartTime, j.Status.StartTime
	if was == nil || suspended(&j.Spec) {
		return
	}
	if now == nil || !now.Equal(was) {
		e.Invalid(p.Child("startTime"), now, "field is immutable for unsuspended job once set")
	}
}

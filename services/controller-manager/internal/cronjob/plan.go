package cronjob

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/controller-manager/internal/owner"
)

// manyMissed is the number of missed start times above which a warning is recorded. The
// value is Kubernetes'.
const manyMissed = 100

// Actions lists the writes of one reconcile: deletions, then the new job, then the status.
type Actions struct {
	// Delete lists the jobs beyond the history limits and those that the new one replaces.
	Delete []*batchv1.Job
	// Create is the job that is due, or nil. Status already has its scheduled time; its
	// reference is added once it exists.
	Create *batchv1.Job
	Status batchv1.CronJobStatus
	Events []Event
	// RequeueAfter is the time until the next job is due; 0 means never.
	RequeueAfter time.Duration
}

// Event is an event to record for the CronJob.
type Event struct {
	Warning         bool
	Reason, Message string
}

type planner struct {
	cj   *batchv1.CronJob
	jobs []*batchv1.Job
	now  time.Time
	plan Actions
}

// Plan returns the next step for a CronJob. jobs are those that it controls.
func Plan(cj *batchv1.CronJob, jobs []*batchv1.Job, now time.Time) Actions {
	p := &planner{cj: cj, jobs: jobs, now: now, plan: Actions{Status: *cj.Status.DeepCopy()}}
	p.account()
	if cj.DeletionTimestamp != nil {
		return p.plan
	}
	p.prune()
	p.start()
	return p.plan
}

func (p *planner) event(warning bool, reason, format string, args ...any) {
	p.plan.Events = append(p.plan.Events, Event{warning, reason, fmt.Sprintf(format, args...)})
}

// account brings status.active and lastSuccessfulTime up to date with the jobs.
func (p *planner) account() {
	byUID := map[types.UID]*batchv1.Job{}
	for _, j := range p.jobs {
		byUID[j.UID] = j
		condition := finished(j)
		if condition == nil || condition.Type != batchv1.JobComplete || j.Status.CompletionTime == nil {
			continue
		}
		if last := p.plan.Status.LastSuccessfulTime; last == nil || last.Before(j.Status.CompletionTime) {
			p.plan.Status.LastSuccessfulTime = j.Status.CompletionTime.DeepCopy()
		}
	}
	var active []corev1.ObjectReference
	listed := map[types.UID]bool{}
	for _, ref := range p.cj.Status.Active {
		listed[ref.UID] = true
		j := byUID[ref.UID]
		if j == nil {
			p.event(false, "MissingJob", "Active job went missing: %v", ref.Name)
			continue
		}
		if c := finished(j); c != nil {
			p.event(false, "SawCompletedJob", "Saw completed job: %s, condition: %v", j.Name, c.Type)
			continue
		}
		active = append(active, ref)
	}
	for _, j := range p.jobs {
		// The job was created, but the status update that follows it was lost.
		if finished(j) == nil && !listed[j.UID] {
			active = append(active, reference(j))
		}
	}
	p.plan.Status.Active = active
}

// finished returns the condition with which a job ended, or nil if it has not.
func finished(j *batchv1.Job) *batchv1.JobCondition {
	for i := range j.Status.Conditions {
		c := &j.Status.Conditions[i]
		if (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue {
			return c
		}
	}
	return nil
}

// prune deletes the oldest finished jobs beyond the history limits.
func (p *planner) prune() {
	var succeeded, failed []*batchv1.Job
	for _, j := range p.jobs {
		switch c := finished(j); {
		case c == nil || j.DeletionTimestamp != nil:
		case c.Type == batchv1.JobComplete:
			succeeded = append(succeeded, j)
		default:
			failed = append(failed, j)
		}
	}
	for _, h := range []struct {
		jobs  []*batchv1.Job
		limit *int32
	}{{succeeded, p.cj.Spec.SuccessfulJobsHistoryLimit}, {failed, p.cj.Spec.FailedJobsHistoryLimit}} {
		if h.limit == nil || len(h.jobs) <= int(*h.limit) {
			continue
		}
		slices.SortFunc(h.jobs, func(a, b *batchv1.Job) int {
			return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
		})
		p.plan.Delete = append(p.plan.Delete, h.jobs[:len(h.jobs)-int(*h.limit)]...)
	}
}

// start creates the job that is due, if there is one.
func (p *planner) start() {
	if p.cj.Spec.Suspend != nil && *p.cj.Spec.Suspend {
		return
	}
	s, invalid := parse(p.cj)
	if invalid != nil {
		p.event(true, invalid.reason, "%s", invalid.Error())
		return
	}
	since := p.cj.CreationTimestamp.Time
	if last := p.cj.Status.LastScheduleTime; last != nil {
		since = last.Time
	}
	s.countFrom(since)
	if next, ok := s.next(p.now); ok {
		p.plan.RequeueAfter = next.Sub(p.now)
	}
	deadline := p.cj.Spec.StartingDeadlineSeconds
	if deadline != nil {
		// A time past the deadline is neither started nor counted as missed.
		if earliest := p.now.Add(-time.Duration(*deadline) * time.Second); earliest.After(since) {
			since = earliest
		}
	}
	due, ok := s.last(since, p.now)
	if !ok {
		return
	}
	if s.missed(since, p.now, manyMissed+1) > manyMissed {
		p.event(true, "TooManyMissedTimes", "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew")
	}
	if !p.makeRoom() {
		return
	}
	p.plan.Create = p.newJob(s, due)
	at := metav1.NewTime(due)
	p.plan.Status.LastScheduleTime = &at
}

// makeRoom applies the concurrency policy to the active jobs. It returns false if they
// prevent a new job from starting. The scheduled time is not lost then: its job starts
// once they have ended, unless its deadline or a later scheduled time has passed.
func (p *planner) makeRoom() bool {
	if len(p.plan.Status.Active) == 0 {
		return true
	}
	switch p.cj.Spec.ConcurrencyPolicy {
	case batchv1.ForbidConcurrent:
		p.event(false, "JobAlreadyActive", "Not starting job because prior execution is running and concurrency policy is Forbid")
		return false
	case batchv1.ReplaceConcurrent:
		for _, j := range p.jobs {
			if finished(j) == nil && j.DeletionTimestamp == nil {
				p.plan.Delete = append(p.plan.Delete, j)
			}
		}
		p.plan.Status.Active = nil
	}
	return true
}

// newJob returns the job for the scheduled time due. Its name is derived from the time,
// so that it is created only once, even by two controllers or by one that was killed
// before it wrote the status.
func (p *planner) newJob(s *schedule, due time.Time) *batchv1.Job {
	t := &p.cj.Spec.JobTemplate
	annotations := maps.Clone(t.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[batchv1.CronJobScheduledTimestampAnnotation] = due.In(s.zone).Format(time.RFC3339)
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{
		Namespace: p.cj.Namespace, Name: fmt.Sprintf("%s-%d", p.cj.Name, due.Unix()/60),
		Labels: maps.Clone(t.Labels), Annotations: annotations, OwnerReferences: []metav1.OwnerReference{owner.Reference(p.cj)},
	}}
	t.Spec.DeepCopyInto(&j.Spec)
	return j
}

// reference returns the reference to a job in a CronJob's status.
func reference(j *batchv1.Job) corev1.ObjectReference {
	return corev1.ObjectReference{
		APIVersion: "batch/v1", Kind: "Job", Namespace: j.Namespace, Name: j.Name, UID: j.UID, ResourceVersion: j.ResourceVersion,
	}
}

package batch

import (
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // machines, containers above all, may lack the time zone database

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// CronJob returns the row of cronjobs.
func CronJob() *resource.Kind {
	k := row.Namespaced[batchv1.CronJob, batchv1.CronJobList](batchv1.SchemeGroupVersion, "cronjobs", "cronjobs")
	k.ShortNames = []string{"cj"}
	k.Categories = []string{"all"}
	k.Columns, k.Cells = cronJobColumns(), cronJobCells
	k.Rules = resource.Typed[*batchv1.CronJob]{
		Default: defaultCronJob,
		PrepareCreate: func(c *batchv1.CronJob) {
			c.Status = batchv1.CronJobStatus{}
			dropJobTemplate(&c.Spec.JobTemplate.Spec)
		},
		PrepareUpdate: func(c, old *batchv1.CronJob) {
			c.Status = old.Status
			dropJobTemplate(&c.Spec.JobTemplate.Spec)
		},
		Warnings:       cronJobWarnings,
		Validate:       validateNewCronJob,
		ValidateUpdate: func(c, old *batchv1.CronJob) field.ErrorList { return validateCronJob(&c.Spec, &old.Spec) },
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*batchv1.CronJob]{
			Default:       defaultCronJob,
			PrepareUpdate: func(c, old *batchv1.CronJob) { c.Spec = old.Spec },
		}.Rules()),
	}
	return k
}

// dropJobTemplate clears the fields of features that are disabled in Kubernetes by default.
func dropJobTemplate(s *batchv1.JobSpec) {
	s.Scheduling = nil
	podspec.Drop(&s.Template.Spec)
}

// The default history limits, as in Kubernetes.
const (
	keptSuccessful = 3
	keptFailed     = 1
)

func defaultCronJob(c *batchv1.CronJob) {
	s := &c.Spec
	if s.ConcurrencyPolicy == "" {
		s.ConcurrencyPolicy = batchv1.AllowConcurrent
	}
	set(&s.Suspend, false)
	set(&s.SuccessfulJobsHistoryLimit, keptSuccessful)
	set(&s.FailedJobsHistoryLimit, keptFailed)
	// The template gets only the defaults of its parts; those of the job's own fields are set
	// in each job.
	defaultFailurePolicy(s.JobTemplate.Spec.PodFailurePolicy)
	podspec.DefaultTemplate(&s.JobTemplate.Spec.Template)
}

func cronJobWarnings(c, old *batchv1.CronJob) []string {
	var list []string
	if old == nil {
		if m := check.Label(c.Name); m != nil {
			list = append(list, fmt.Sprintf("metadata.name: this is used in Pod names and hostnames, "+
				"which can result in surprising behavior; a DNS label is recommended: %v", m))
		}
	}
	s := &c.Spec.JobTemplate.Spec
	if old == nil || !check.Same(&c.Spec, &old.Spec) {
		list = append(list, manyWarnings(s, "spec.jobTemplate.spec")...)
		if old == nil || !check.Same(&s.Template, &old.Spec.JobTemplate.Spec.Template) {
			list = append(list, podspec.Warnings(&s.Template.Spec, s.Template.Annotations, field.NewPath("spec", "jobTemplate", "spec", "template"))...)
		}
	}
	if old != nil && namesZone(c.Spec.Schedule) {
		list = append(list, "cannot use TZ or CRON_TZ in spec.spec.schedule, use timeZone instead, "+
			"see https://kubernetes.io/docs/concepts/workloads/controllers/cron-jobs/ for more details")
	}
	return list
}

// maxCronJobName leaves room for the suffix of job names, a dash and the scheduled time in minutes
// since 1970.
const maxCronJobName = 63 - 11

func validateNewCronJob(c *batchv1.CronJob) field.ErrorList {
	e := check.Errors{List: validateCronJob(&c.Spec, nil)}
	if len(c.Name) > maxCronJobName {
		e.Invalid(field.NewPath("metadata", "name"), c.Name, fmt.Sprintf("must be no more than %d characters", maxCronJobName))
	}
	return e.List
}

func validateCronJob(s, old *batchv1.CronJobSpec) field.ErrorList {
	var e check.Errors
	p := field.NewPath("spec")
	validateSchedule(&e, s, old, p)
	if s.StartingDeadlineSeconds != nil {
		e.AtLeastZero(p, "startingDeadlineSeconds", *s.StartingDeadlineSeconds)
	}
	if s.TimeZone != nil && (old == nil || old.TimeZone == nil || *old.TimeZone != *s.TimeZone) {
		validateZone(&e, *s.TimeZone, p.Child("timeZone"))
	}
	check.OneOf(&e, p, "concurrencyPolicy", s.ConcurrencyPolicy,
		batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent)
	at, job := p.Child("jobTemplate", "spec"), &s.JobTemplate.Spec
	validateJobSpec(&e, job, at)
	if job.Selector != nil {
		e.Invalid(at.Child("selector"), job.Selector, "`selector` will be auto-generated")
	}
	if m := job.ManualSelector; m != nil && *m {
		e.List = append(e.List, field.NotSupported(at.Child("manualSelector"), *m, []string{"nil", "false"}))
	}
	if n := s.SuccessfulJobsHistoryLimit; n != nil {
		e.AtLeastZero(p, "successfulJobsHistoryLimit", int64(*n))
	}
	if n := s.FailedJobsHistoryLimit; n != nil {
		e.AtLeastZero(p, "failedJobsHistoryLimit", int64(*n))
	}
	return e.List
}

// namesZone reports whether a schedule contains a time zone, for which the field timeZone is the
// replacement.
func namesZone(schedule string) bool { return strings.Contains(schedule, "TZ") }

func validateSchedule(e *check.Errors, s, old *batchv1.CronJobSpec, p *field.Path) {
	if s.Schedule == "" {
		e.Required(p.Child("schedule"), "")
		return
	}
	if err := parseSchedule(s.Schedule); err != nil {
		e.Invalid(p.Child("schedule"), s.Schedule, err.Error())
	}
	if !namesZone(s.Schedule) {
		return
	}
	switch had := old != nil && namesZone(old.Schedule); {
	case !had:
		e.Invalid(p.Child("schedule"), s.Schedule, "cannot use TZ or CRON_TZ in schedule, use timeZone field instead")
	case s.TimeZone != nil:
		e.Invalid(p.Child("schedule"), s.Schedule, "cannot use both timeZone field and TZ or CRON_TZ in schedule")
	}
}

// parseSchedule returns an error if the schedule is invalid. The parser panics on some invalid
// schedules.
func parseSchedule(schedule string) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("invalid schedule format: %v", r)
		}
	}()
	_, err = cron.ParseStandard(schedule)
	return err
}

// maxZonePart is the maximum length of a part of a time zone's name, in bytes
// (https://data.iana.org/time-zones/theory.html#naming).
const maxZonePart = 14

func validateZone(e *check.Errors, zone string, p *field.Path) {
	if zone == "" {
		e.Invalid(p, zone, "timeZone must be nil or non-empty string")
		return
	}
	for part := range strings.SplitSeq(zone, "/") {
		if !zonePart(part) {
			e.Invalid(p, zone, "unknown time zone "+zone)
			return
		}
	}
	if strings.EqualFold(zone, "Local") {
		e.Invalid(p, zone, "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones")
	}
	if _, err := time.LoadLocation(zone); err != nil {
		e.Invalid(p, zone, err.Error())
	}
}

// zonePart reports whether part is valid as one of the parts, separated by slashes, of a zone's
// name, which is used as the path of a file.
func zonePart(part string) bool {
	if part == "" || len(part) > maxZonePart || part == "." || part == ".." || part[0] == '-' {
		return false
	}
	return strings.IndexFunc(part, func(r rune) bool {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9'
		return !letter && !strings.ContainsRune("._-+", r)
	}) < 0
}

func cronJobColumns() []metav1.TableColumnDefinition {
	spec, status := batchv1.CronJobSpec{}, batchv1.CronJobStatus{}
	return []metav1.TableColumnDefinition{
		column.Text("Schedule", column.Doc(spec, "schedule")),
		column.Text("Timezone", column.Doc(spec, "timeZone")),
		column.New("Suspend", "boolean", column.Doc(spec, "suspend")),
		column.New("Active", "integer", column.Doc(status, "active")),
		column.Text("Last Schedule", column.Doc(status, "lastScheduleTime")),
		column.AgeColumn(),
		column.Wide("Containers", "Names of each container in the template."),
		column.Wide("Images", "Images referenced by each container in the template."),
		column.Wide("Selector", column.Doc(batchv1.JobSpec{}, "selector")),
	}
}

func cronJobCells(o resource.Object) []any {
	c := o.(*batchv1.CronJob)
	zone, last, suspended := column.None, column.None, column.Unset
	if c.Spec.TimeZone != nil {
		zone = *c.Spec.TimeZone
	}
	if c.Status.LastScheduleTime != nil {
		last = column.Age(*c.Status.LastScheduleTime)
	}
	if s := c.Spec.Suspend; s != nil {
		suspended = "False"
		if *s {
			suspended = "True"
		}
	}
	template := &c.Spec.JobTemplate.Spec
	names, images := column.Containers(template.Template.Spec.Containers)
	return []any{
		c.Spec.Schedule, zone, suspended, int64(len(c.Status.Active)), last, column.Age(c.CreationTimestamp),
		names, images, column.Selector(template.Selector),
	}
}

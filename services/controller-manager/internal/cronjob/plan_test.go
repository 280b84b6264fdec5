package cronjob_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/controller-manager/internal/cronjob"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 11, 1, 12, 30, 30, 0, time.UTC)

// hourly returns an hourly CronJob whose last job was scheduled for 11:00.
func hourly() *batchv1.CronJob {
	last, utc := metav1.NewTime(time.Date(2026, 11, 1, 11, 0, 0, 0, time.UTC)), "Etc/UTC"
	return &batchv1.CronJob{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "report", UID: "cj", CreationTimestamp: metav1.NewTime(now.Add(-24 * time.Hour))},
		Spec: batchv1.CronJobSpec{
			Schedule: "0 * * * *", TimeZone: &utc, ConcurrencyPolicy: batchv1.AllowConcurrent,
			JobTemplate: batchv1.JobTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"a": "b"}}},
		},
		Status: batchv1.CronJobStatus{LastScheduleTime: &last},
	}
}

func job(name string, age time.Duration, end batchv1.JobConditionType) *batchv1.Job {
	j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(now.Add(-age))}}
	if end != "" {
		at := metav1.NewTime(now.Add(-age + time.Minute))
		j.Status.Conditions = []batchv1.JobCondition{{Type: end, Status: corev1.ConditionTrue}}
		j.Status.CompletionTime = &at
	}
	return j
}

func reasons(p cronjob.Actions) []string {
	var out []string
	for _, e := range p.Events {
		out = append(out, e.Reason)
	}
	return out
}

func TestStartsWhatIsDue(t *testing.T) {
	seconds := func(n int64) func(*batchv1.CronJob) {
		return func(cj *batchv1.CronJob) { cj.Spec.StartingDeadlineSeconds = &n }
	}
	last := func(at time.Time) func(*batchv1.CronJob) {
		return func(cj *batchv1.CronJob) { v := metav1.NewTime(at); cj.Status.LastScheduleTime = &v }
	}
	noon := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	for name, c := range map[string]struct {
		change func(*batchv1.CronJob)
		due    time.Time // zero if none is
		wait   time.Duration
		events []string
	}{
		"due":                        {due: noon, wait: 29*time.Minute + 30*time.Second},
		"started already":            {change: last(noon), wait: 29*time.Minute + 30*time.Second},
		"only the latest of several": {change: last(noon.Add(-6 * time.Hour)), due: noon, wait: 29*time.Minute + 30*time.Second},
		"too late":                   {change: seconds(60), wait: 29*time.Minute + 30*time.Second},
		"within the deadline":        {change: seconds(3600), due: noon, wait: 29*time.Minute + 30*time.Second},
		"suspended":                  {change: func(cj *batchv1.CronJob) { yes := true; cj.Spec.Suspend = &yes }},
		"another zone": {
			change: func(cj *batchv1.CronJob) { z := "Asia/Kolkata"; cj.Spec.TimeZone = &z }, // 5:30 ahead
			due:    time.Date(2026, 11, 1, 12, 30, 0, 0, time.UTC), wait: 59*time.Minute + 30*time.Second,
		},
		"many missed": {
			change: func(cj *batchv1.CronJob) { cj.Spec.Schedule = "* * * * *"; last(noon.Add(-24 * time.Hour))(cj) },
			due:    time.Date(2026, 11, 1, 12, 30, 0, 0, time.UTC), wait: 30 * time.Second, events: []string{"TooManyMissedTimes"},
		},
		"years missed": {
			change: func(cj *batchv1.CronJob) { cj.Spec.Schedule = "@yearly"; last(noon.AddDate(-40, 0, 0))(cj) },
			due:    time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), wait: time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC).Sub(now),
		},
		"bad schedule": {change: func(cj *batchv1.CronJob) { cj.Spec.Schedule = "every day" }, events: []string{"UnparseableSchedule"}},
		"bad zone": {
			change: func(cj *batchv1.CronJob) { z := "Mars/Base"; cj.Spec.TimeZone = &z }, events: []string{"UnknownTimeZone"},
		},
		"@every counts from the last job": {
			change: func(cj *batchv1.CronJob) { cj.Spec.Schedule = "@every 40m" },
			due:    time.Date(2026, 11, 1, 12, 20, 0, 0, time.UTC), wait: 29*time.Minute + 30*time.Second,
		},
		"@every within a deadline shorter than the interval": {
			change: func(cj *batchv1.CronJob) { cj.Spec.Schedule = "@every 90m"; seconds(60)(cj) },
			due:    time.Date(2026, 11, 1, 12, 30, 0, 0, time.UTC), wait: 89*time.Minute + 30*time.Second,
		},
		"never": {change: func(cj *batchv1.CronJob) { cj.Spec.Schedule = "0 0 30 2 *" }},
	} {
		t.Run(name, func(t *testing.T) {
			cj := hourly()
			if c.change != nil {
				c.change(cj)
			}
			p := cronjob.Plan(cj, nil, now)
			if (p.Create == nil) != c.due.IsZero() {
				t.Fatalf("created %v, want a job only if one is due (%v)", p.Create, c.due)
			}
			if p.Create != nil {
				if want := fmt.Sprintf("report-%d", c.due.Unix()/60); p.Create.Name != want || p.Create.Labels["a"] != "b" {
					t.Errorf("created job %s with labels %v, want %s", p.Create.Name, p.Create.Labels, want)
				}
				if !p.Status.LastScheduleTime.Time.Equal(c.due) {
					t.Errorf("lastScheduleTime %v, want %v", p.Status.LastScheduleTime, c.due)
				}
			}
			if p.RequeueAfter != c.wait {
				t.Errorf("requeued after %v, want %v", p.RequeueAfter, c.wait)
			}
			if got := reasons(p); !slices.Equal(got, c.events) {
				t.Errorf("events %v, want %v", got, c.events)
			}
		})
	}
}

func TestScheduledTimeAnnotationIsInTheTimeZone(t *testing.T) {
	cj := hourly()
	zone := "Asia/Kolkata"
	cj.Spec.TimeZone = &zone
	got := cronjob.Plan(cj, nil, now).Create.Annotations[batchv1.CronJobScheduledTimestampAnnotation]
	if got != "2026-11-01T18:00:00+05:30" {
		t.Errorf("scheduled time %q, want 18:00 in Asia/Kolkata", got)
	}
}

func TestConcurrency(t *testing.T) {
	running := job("running", time.Hour, "")
	for policy, c := range map[batchv1.ConcurrencyPolicy]struct{ create, remove bool }{
		batchv1.AllowConcurrent:   {create: true},
		batchv1.ForbidConcurrent:  {},
		batchv1.ReplaceConcurrent: {create: true, remove: true},
	} {
		cj := hourly()
		cj.Spec.ConcurrencyPolicy = policy
		p := cronjob.Plan(cj, []*batchv1.Job{running}, now)
		if (p.Create != nil) != c.create || (len(p.Delete) == 1) != c.remove {
			t.Errorf("%s: created %v and deleted %v", policy, p.Create, p.Delete)
		}
		if want := !c.remove; (len(p.Status.Active) == 1) != want {
			t.Errorf("%s: active %v", policy, p.Status.Active)
		}
	}
}

func TestStatusAndHistoryFollowTheJobs(t *testing.T) {
	cj := hourly()
	one := int32(1)
	cj.Spec.SuccessfulJobsHistoryLimit, cj.Spec.FailedJobsHistoryLimit = &one, &one
	cj.Status.Active = []corev1.ObjectReference{{Name: "done", UID: "done"}, {Name: "lost", UID: "lost"}}
	done := job("done", time.Hour, batchv1.JobComplete)
	p := cronjob.Plan(cj, []*batchv1.Job{
		done, job("older", 2*time.Hour, batchv1.JobComplete), job("failed", time.Hour, batchv1.JobFailed),
		job("failed-before", 2*time.Hour, batchv1.JobFailed), job("runs", time.Minute, ""),
	}, now)
	var removed []string
	for _, j := range p.Delete {
		removed = append(removed, j.Name)
	}
	if want := []string{"older", "failed-before"}; !slices.Equal(removed, want) {
		t.Errorf("deleted jobs %v, want %v", removed, want)
	}
	if len(p.Status.Active) != 1 || p.Status.Active[0].Name != "runs" {
		t.Errorf("active jobs %v, want only runs", p.Status.Active)
	}
	if !p.Status.LastSuccessfulTime.Equal(done.Status.CompletionTime) {
		t.Errorf("lastSuccessfulTime %v, want that of job done", p.Status.LastSuccessfulTime)
	}
	if got := reasons(p); !slices.Equal(got, []string{"SawCompletedJob", "MissingJob"}) {
		t.Errorf("events %v", got)
	}
}

// TestOneJobPerScheduledTime starts a controller after the job was created but before
// the status was written.
func TestOneJobPerScheduledTime(t *testing.T) {
	w := Start(t)
	cj := hourly()
	cj.UID, cj.Spec.Schedule = "", "@yearly"
	Create(w, cj)
	cj = Update(w, "default", "report", func(cj *batchv1.CronJob) {
		before := metav1.NewTime(time.Now().AddDate(-1, 0, 0))
		cj.Status.LastScheduleTime = &before
	}, client.Subresource("status"))
	w.CatchUp()
	due := cronjob.Plan(cj, nil, time.Now()).Create
	if due == nil {
		t.Fatal("no job is due")
	}
	if _, err := client.For[*batchv1.Job](w.Client).Create(context.Background(), due); err != nil {
		t.Fatal(err)
	}
	w.CatchUp()
	w.Run(cronjob.New(w.Cluster.As("cronjob-controller")))
	w.Eventually("the status lists the job", func() bool {
		s := Get[*batchv1.CronJob](w, "default", "report").Status
		return len(s.Active) == 1 && s.LastScheduleTime.After(time.Now().AddDate(-1, 0, 0))
	})
	if got := List[*batchv1.Job](w, "default"); len(got) != 1 {
		t.Errorf("got %d jobs, want 1", len(got))
	}
}

// TestSchedulesThatPanicTheParser uses schedules on which the parser slices out of range.
func TestSchedulesThatPanicTheParser(t *testing.T) {
	for _, schedule := range []string{"TZ=0", "TZ=", "CRON_TZ=UTC", "TZ=TZ=TZ="} {
		cj := hourly()
		cj.Spec.Schedule = schedule
		p := cronjob.Plan(cj, nil, now)
		if p.Create != nil || p.RequeueAfter != 0 || !slices.Equal(reasons(p), []string{"UnparseableSchedule"}) {
			t.Errorf("schedule %q: plan %+v, want only the event UnparseableSchedule", schedule, p)
		}
	}
}

// TestActiveJobThatTheCacheDoesNotShow cuts the watch of jobs before a job is created that
// the CronJob's status then names, as a new leader may see them.
func TestActiveJobThatTheCacheDoesNotShow(t *testing.T) {
	w := Start(t)
	cj := hourly()
	cj.UID, cj.Spec.Schedule, cj.Spec.ConcurrencyPolicy = "", "@yearly", batchv1.ForbidConcurrent
	Create(w, cj)
	c := cronjob.New(w.Cluster.As("cronjob-controller"))
	w.CatchUp()
	w.Server.Fail(func(method string, ref *resourcev1.Ref) error {
		if ref.GetResource() == "jobs" && (method == "Watch" || method == "List") {
			return apierrors.NewServiceUnavailable("the watch of jobs is cut")
		}
		return nil
	})
	w.Server.Cut()
	live := Get[*batchv1.CronJob](w, "default", "report")
	running := job("report-1", time.Minute, "")
	running.UID, running.OwnerReferences = "", []metav1.OwnerReference{*metav1.NewControllerRef(live, batchv1.SchemeGroupVersion.WithKind("CronJob"))}
	running = Create(w, running)
	gone := corev1.ObjectReference{Name: "report-0", UID: "gone"}
	Update(w, "default", "report", func(cj *batchv1.CronJob) {
		before := metav1.NewTime(time.Now().AddDate(-1, 0, 0))
		cj.Status.LastScheduleTime = &before
		cj.Status.Active = []corev1.ObjectReference{gone, {Name: running.Name, UID: running.UID}}
	}, client.Subresource("status"))
	w.Run(c)
	w.Eventually("the job that does not exist is dropped from the status", func() bool {
		active := Get[*batchv1.CronJob](w, "default", "report").Status.Active
		return len(active) == 1 && active[0].UID == running.UID
	})
	w.Server.Fail(nil)
	if got := List[*batchv1.Job](w, "default"); len(got) != 1 {
		t.Errorf("there are %d jobs, want only the running one", len(got))
	}
}

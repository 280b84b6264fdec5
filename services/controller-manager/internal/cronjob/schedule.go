package cronjob

import (
	"fmt"
	"sort"
	"time"
	_ "time/tzdata" // container images may lack the zone files

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
)

// schedule holds the times at which a CronJob's jobs start.
type schedule struct {
	cron cron.Schedule
	zone *time.Location
}

// parseError is an invalid schedule or time zone, with the reason of the event to record.
type parseError struct {
	reason string
	err    error
}

func (e *parseError) Error() string { return e.err.Error() }

// parse parses a CronJob's schedule and time zone. Without a time zone, the schedule is in
// the controller's local one.
func parse(cj *batchv1.CronJob) (*schedule, *parseError) {
	zone := time.Local
	if name := cj.Spec.TimeZone; name != nil {
		var err error
		if zone, err = time.LoadLocation(*name); err != nil {
			return nil, &parseError{"UnknownTimeZone", fmt.Errorf("invalid timeZone: %q: %w", *name, err)}
		}
	}
	s, err := parseCron(cj.Spec.Schedule)
	if err != nil {
		return nil, &parseError{"UnparseableSchedule", fmt.Errorf("unparseable schedule: %q : %w", cj.Spec.Schedule, err)}
	}
	return &schedule{s, zone}, nil
}

// parseCron is cron.ParseStandard, which panics on some invalid schedules, for instance on
// "TZ=0" (https://github.com/robfig/cron/issues/554). The apiserver rejects them, but
// objects restored from elsewhere may contain them.
func parseCron(text string) (s cron.Schedule, err error) {
	defer func() {
		if p := recover(); p != nil {
			s, err = nil, fmt.Errorf("invalid schedule format: %v", p)
		}
	}()
	return cron.ParseStandard(text)
}

// countFrom sets the time from which the intervals of an @every schedule are counted:
// that of the last job, or of the CronJob's creation. Without it, next would count from
// its argument, and each reconcile would put the next job off.
func (s *schedule) countFrom(t time.Time) {
	if e, ok := s.cron.(cron.ConstantDelaySchedule); ok {
		s.cron = every{e.Delay, t}
	}
}

// every is the schedule of the times start + n*delay, n > 0.
type every struct {
	delay time.Duration // at least a second, as cron.Every ensures
	start time.Time
}

func (e every) Next(t time.Time) time.Time {
	n := max(t.Sub(e.start)/e.delay, 0) + 1
	return e.start.Add(n * e.delay).In(t.Location())
}

// next returns the first scheduled time after t. ok is false if there is none within
// five years.
func (s *schedule) next(t time.Time) (next time.Time, ok bool) {
	next = s.cron.Next(t.In(s.zone))
	return next, !next.IsZero()
}

// last returns the latest scheduled time after since and not after now. ok is false if
// there is none. It is a binary search over the seconds in between, so its cost does not
// depend on how many times were missed.
func (s *schedule) last(since, now time.Time) (last time.Time, ok bool) {
	due := func(t time.Time) bool {
		next, ok := s.next(t)
		return ok && !next.After(now)
	}
	if !due(since) {
		return time.Time{}, false
	}
	// due is true from since until just before the latest time, and false from then on.
	span := int(now.Sub(since)/time.Second) + 1
	after := sort.Search(span, func(n int) bool { return !due(since.Add(time.Duration(n+1) * time.Second)) })
	return s.next(since.Add(time.Duration(after) * time.Second))
}

// missed counts the scheduled times after since and not after now, up to limit.
func (s *schedule) missed(since, now time.Time, limit int) int {
	n := 0
	for t := since; n < limit; n++ {
		next, ok := s.next(t)
		if !ok || next.After(now) {
			break
		}
		t = next
	}
	return n
}

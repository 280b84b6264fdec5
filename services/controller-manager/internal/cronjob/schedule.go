package cronjob

import (
	"fmt"
	"sort"
	"time"
	_ "time/tzdata" // a container image may have no zone files

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
)

// schedule is when a CronJob's jobs start.
type schedule struct {
	cron cron.Schedule
	zone *time.Location
}

// parseError says what is wrong with a schedule, with the reason of its event.
type parseError struct {
	reason string
	err    error
}

func (e *parseError) Error() string { return e.err.Error() }

func parse(cj *batchv1.CronJob) (*schedule, *parseError) {
	zone := time.Local
	if name := cj.Spec.TimeZone; name != nil {
		var err error
		if zone, err = time.LoadLocation(*name); err != nil {
			return nil, &parseError{"UnknownTimeZone", fmt.Errorf("invalid timeZone: %q: %w", *name, err)}
		}
	}
	s, err := cron.ParseStandard(cj.Spec.Schedule)
	if err != nil {
		return nil, &parseError{"UnparseableSchedule", fmt.Errorf("unparseable schedule: %q : %w", cj.Spec.Schedule, err)}
	}
	return &schedule{s, zone}, nil
}

// next is the first time after t; ok is false where there is none within five years.
func (s *schedule) next(t time.Time) (next time.Time, ok bool) {
	next = s.cron.Next(t.In(s.zone))
	return next, !next.IsZero()
}

// last is the latest time after since and not after now; ok is false where there is
// none. It takes as many steps as the seconds between have bits, however many times
// were missed.
func (s *schedule) last(since, now time.Time) (last time.Time, ok bool) {
	due := func(t time.Time) bool {
		next, ok := s.next(t)
		return ok && !next.After(now)
	}
	if !due(since) {
		return time.Time{}, false
	}
	// due holds from since to just before the last time, and never after it.
	span := int(now.Sub(since)/time.Second) + 1
	after := sort.Search(span, func(n int) bool { return !due(since.Add(time.Duration(n+1) * time.Second)) })
	return s.next(since.Add(time.Duration(after) * time.Second))
}

// missed counts the times after since and not after now, up to limit.
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

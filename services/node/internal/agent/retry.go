package agent

import (
	"time"

	corev1 "k8s.io/api/core/v1"
)

// hold is the reason why a container is not started, and the time until which it is held.
type hold struct {
	state        corev1.ContainerStateWaiting
	since, until time.Time
}

// retry is a delay that doubles with each failure.
type retry struct {
	until time.Time
	delay time.Duration
}

func (r *retry) fail(first, most time.Duration) {
	r.delay = min(max(2*r.delay, first), most)
	r.until = time.Now().Add(r.delay)
}

func (r *retry) ok() { *r = retry{} }

// wakeTimes collects times for the next sync and returns the earliest.
type wakeTimes struct{ at time.Time }

func (t *wakeTimes) add(at time.Time) {
	if !at.IsZero() && (t.at.IsZero() || at.Before(t.at)) {
		t.at = at
	}
}

func (t *wakeTimes) wait() time.Duration {
	if t.at.IsZero() {
		return resync
	}
	return max(5*time.Millisecond, min(resync, time.Until(t.at)))
}

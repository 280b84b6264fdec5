// Package wait polls a condition until it holds. It is the only way in which the tests
// of e2e wait: a test that needs a moment says what it waits for, and how long at most.
package wait

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"
)

// The pause between two attempts grows with the time waited, so that a measured time is
// at most a twentieth too long and a long wait costs little. It is never shorter than
// the attempt before it: polling takes half of one CPU at most.
const (
	minPause = 5 * time.Millisecond
	maxPause = time.Second
	fraction = 20
)

// overtime is how long an attempt that began in time may go on.
const overtime = 10 * time.Second

// permanent is an error after which there is no further attempt.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Stop makes an error permanent: a condition that returns it ends the wait at once.
func Stop(err error) error { return permanent{err} }

// For polls condition until it returns nil, and ends the test if that takes longer than
// within. The failure names what was awaited and the last reason why it did not hold.
func For(t testing.TB, within time.Duration, what string, condition func(context.Context) error) {
	t.Helper()
	if err := Until(t.Context(), within, condition); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// Until polls condition until it returns nil, ctx ends or the time is over; the last
// attempt begins when the time is over. The error wraps the last reason why the condition
// did not hold. The context of an attempt ends a little later than the wait, so that
// a call that hangs cannot prolong it for long.
func Until(ctx context.Context, within time.Duration, condition func(context.Context) error) error {
	began := time.Now()
	deadline := began.Add(within)
	attempts, cancel := context.WithDeadline(ctx, deadline.Add(overtime))
	defer cancel()
	var reason error
	for {
		tried := time.Now()
		err := condition(attempts)
		var stop permanent
		switch {
		case err == nil:
			return nil
		case errors.As(err, &stop):
			return stop.error
		case reason != nil && attempts.Err() != nil:
			// The attempt was cut off: its error has less to say than the one before it.
			err = fmt.Errorf("%w; then an attempt was cut off: %w", reason, err)
		}
		reason = err
		now := time.Now()
		if ctx.Err() != nil {
			return errors.Join(ctx.Err(), reason)
		}
		if !now.Before(deadline) {
			return fmt.Errorf("not within %s: %w", within, reason)
		}
		Pause(ctx, min(max(minPause, now.Sub(tried), now.Sub(began)/fraction), maxPause, deadline.Sub(now)))
	}
}

// Pause waits for d or until ctx ends. It paces load and holds a fault for a given time;
// a test that waits for something to happen uses For.
func Pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

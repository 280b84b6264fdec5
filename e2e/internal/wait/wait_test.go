package wait

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var errNotYet = errors.New("not yet")

func TestUntilReturnsWhenTheConditionHolds(t *testing.T) {
	for _, after := range []time.Duration{0, 7 * time.Millisecond, 500 * time.Millisecond, 10 * time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			attempts := 0
			err := Until(t.Context(), time.Minute, func(context.Context) error {
				attempts++
				if time.Since(began) < after {
					return errNotYet
				}
				return nil
			})
			late := time.Since(began) - after
			if err != nil || late > max(minPause, after/fraction) {
				t.Errorf("a condition that holds after %s: %v, %s late", after, err, late)
			}
			if attempts > 250 {
				t.Errorf("%d attempts within %s", attempts, after)
			}
		})
	}
}

func TestUntilReportsTheLastReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, began := 0, time.Now()
		err := Until(t.Context(), time.Minute, func(context.Context) error {
			n++
			return fmt.Errorf("attempt %d: %w", n, errNotYet)
		})
		want := fmt.Sprintf("not within 1m0s: attempt %d: not yet", n)
		if err == nil || err.Error() != want || !errors.Is(err, errNotYet) {
			t.Errorf("got %v, want %s", err, want)
		}
		if took := time.Since(began); took != time.Minute {
			t.Errorf("it took %s", took)
		}
	})
}

func TestUntilCutsOffAnAttemptThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, began := 0, time.Now()
		err := Until(t.Context(), time.Second, func(ctx context.Context) error {
			if n++; n == 1 {
				return errNotYet
			}
			<-ctx.Done()
			return ctx.Err()
		})
		if !errors.Is(err, errNotYet) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the reason before the attempt that hung, too", err)
		}
		if took := time.Since(began); took != time.Second+overtime {
			t.Errorf("it took %s", took)
		}
	})
}

func TestUntilEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		began := time.Now()
		err := Until(ctx, time.Minute, func(context.Context) error { return errNotYet })
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errNotYet) || time.Since(began) != 3*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

func TestStopEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		err := Until(t.Context(), time.Minute, func(context.Context) error { return Stop(errNotYet) })
		if !errors.Is(err, errNotYet) || time.Since(began) != 0 {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// An attempt that takes long is followed by a pause that is as long.
func TestPollingLeavesTheMachineHalfTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		attempts := 0
		_ = Until(t.Context(), 10*time.Second, func(ctx context.Context) error {
			attempts++
			Pause(ctx, 200*time.Millisecond)
			return errNotYet
		})
		if attempts < 20 || attempts > 26 {
			t.Errorf("%d attempts of 200 ms in 10 s", attempts)
		}
	})
}

// recorder is a test that only notes its failure.
type recorder struct {
	testing.TB
	failure string
}

func (r *recorder) Helper()                           {}
func (r *recorder) Fatalf(format string, args ...any) { r.failure = fmt.Sprintf(format, args...) }

func TestForNamesWhatItWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{TB: t}
		For(r, time.Second, "the node is Ready", func(context.Context) error { return errNotYet })
		if !strings.HasPrefix(r.failure, "the node is Ready: not within 1s: not yet") {
			t.Errorf("the failure is %q", r.failure)
		}
	})
}

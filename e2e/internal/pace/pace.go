// Package pace calibrates bounds of time against what the machine gives. While a test runs,
// it measures from time to time how much of a core a busy thread gets; a span of time then
// counts by that share. On an idle machine a second is a second. If six busy processes
// share each core, a second counts as a sixth, because the programs under test get no more
// either.
//
// A bound that is checked this way is still the product's promise. It is not for limits of
// waiting, which only have to end.
package pace

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// every is the time between two measurements, and burst how long each keeps a core busy.
	// A shorter burst would fit into the time slice that a thread gets after it has slept.
	every = 500 * time.Millisecond
	burst = 20 * time.Millisecond
)

// Clock measures while a test runs.
type Clock struct {
	mu      sync.Mutex
	samples []sample
}

// sample is the share of a core that a thread got in a burst that ended at at.
type sample struct {
	at    time.Time
	share float64
}

// Start returns a clock that runs until the test ends.
func Start(tb testing.TB) *Clock {
	c := &Clock{}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			share := measure()
			c.mu.Lock()
			c.samples = append(c.samples, sample{time.Now(), share})
			c.mu.Unlock()
			select {
			case <-tick.C:
			case <-end:
				return
			}
		}
	}()
	tb.Cleanup(func() { close(end); <-ended })
	return c
}

// measure keeps a thread busy until it has used burst of a core, and returns the share of
// the time that it got.
func measure() float64 {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began, used := time.Now(), cpu()
	for cpu()-used < burst {
	}
	return min(float64(cpu()-used)/float64(max(time.Since(began), 1)), 1)
}

// cpu returns the time that the thread has used.
func cpu() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic("pace: " + err.Error()) // Linux has had this clock since 2.6.12
	}
	return time.Duration(t.Nano())
}

// Given returns the time between two moments after Start, weighted by the share of a core
// that a busy thread got. A moment between two measurements has the share of the later one,
// which ended after it.
func (c *Clock) Given(from, to time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	var given float64
	at := from
	last := 1.0
	for _, s := range c.samples {
		last = s.share
		if !s.at.After(at) {
			continue
		}
		until := s.at
		if until.After(to) {
			until = to
		}
		given += float64(until.Sub(at)) * s.share
		if at = until; !at.Before(to) {
			return time.Duration(given)
		}
	}
	return time.Duration(given + float64(to.Sub(at))*last)
}

// Since returns the time given since a moment after Start.
func (c *Clock) Since(from time.Time) time.Duration { return c.Given(from, time.Now()) }

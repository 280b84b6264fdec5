// Package pacetest measures how much of a span of time the machine gave to the test's
// process, so that tests can check bounds of time on a machine that is loaded or stalls. It
// is for bounds on waiting (elections, time-outs, grace periods). A process that uses all its
// cores delays its own clock: bounds on computing are ratios to other work.
package pacetest

import (
	"sync"
	"testing"
	"time"
)

// period is the time between two ticks.
const period = 5 * time.Millisecond

// Clock ticks while the process runs. A tick that is late by more than its period is lost, so
// that stalls and waits for a core do not count.
type Clock struct {
	mu    sync.Mutex
	ticks []time.Time
}

// Start returns a clock that runs until the test ends.
func Start(tb testing.TB) *Clock {
	c := &Clock{}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(period)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.mu.Lock()
				c.ticks = append(c.ticks, time.Now())
				c.mu.Unlock()
			case <-end:
				return
			}
		}
	}()
	tb.Cleanup(func() { close(end); <-ended })
	return c
}

// Given returns the time that the process was given between two moments after Start. It is
// at most the time between them, but for one period.
func (c *Clock) Given(from, to time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, t := range c.ticks {
		if t.After(from) && !t.After(to) {
			n++
		}
	}
	return time.Duration(n) * period
}

// Since returns the time that the process was given since a moment after Start.
func (c *Clock) Since(from time.Time) time.Duration { return c.Given(from, time.Now()) }

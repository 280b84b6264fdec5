package ops

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// Progress tells a loop that works from one that hangs, for a health check. The loop calls
// Begin before each of its steps and End after it. Between two steps it may wait for as long
// as it likes; a step that takes longer than Patience fails the check until it ends.
//
// A step must not wait for other programs without a bound below Patience: a restart of this
// program would be no remedy. Begin and End are called by one goroutine. They cost two
// readings of the clock, and allocate nothing.
type Progress struct {
	// Patience must be set before the first use.
	Patience time.Duration
	// began is when the present step began, since epoch; 0 between two steps.
	began atomic.Int64
}

// epoch is what Progress counts from: durations since then are monotonic.
var epoch = time.Now()

// Begin records that a step has begun.
func (p *Progress) Begin() { p.began.Store(max(int64(time.Since(epoch)), 1)) }

// End records that the step has ended.
func (p *Progress) End() { p.began.Store(0) }

// Check returns an error if a step takes too long.
func (p *Progress) Check(context.Context) error {
	began := p.began.Load()
	if began == 0 {
		return nil
	}
	if took := time.Since(epoch) - time.Duration(began); took > p.Patience {
		return fmt.Errorf("no progress for %s", took.Round(time.Millisecond))
	}
	return nil
}

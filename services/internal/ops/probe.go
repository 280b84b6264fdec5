package ops

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// Probes look this often, and give one look this long: what is lost is reported
// within both together, and what is back within the first.
const (
	probeEvery = 500 * time.Millisecond
	probeTime  = 2 * time.Second
	// probeStuck is how long a look may take until the probe counts as stuck: it has not
	// ended when its context did.
	probeStuck = 30 * time.Second
)

// Probe repeats a check in the background, so that asking for its result costs
// nothing and never waits.
type Probe struct {
	look     Check
	last     atomic.Pointer[error]
	progress Progress
}

// NewProbe makes a probe of a check that may take its time.
func NewProbe(look Check) *Probe { return &Probe{look: look, progress: Progress{Patience: probeStuck}} }

// Run looks again and again until ctx ends.
func (p *Probe) Run(ctx context.Context) error {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		try, cancel := context.WithTimeout(ctx, probeTime)
		p.progress.Begin()
		err := p.look(try)
		p.progress.End()
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		p.last.Store(&err)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Check is the result of the last look.
func (p *Probe) Check(context.Context) error {
	last := p.last.Load()
	if last == nil {
		return errors.New("not looked at yet")
	}
	return *last
}

// Alive returns an error if a look hangs, so that Check returns the result of an earlier one.
// It is a health check: what was looked at is in this process if it ignores its context.
func (p *Probe) Alive(ctx context.Context) error { return p.progress.Check(ctx) }

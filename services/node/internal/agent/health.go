package agent

import (
	"context"
	"time"
)

const (
	// lockPeriod is the interval at which the agent's locks are taken to see whether they
	// can be, and stuck how long that may take. No lock is held while the runtime, the API
	// or a disk is waited for.
	lockPeriod = 5 * time.Second
	stuck      = time.Minute
)

// Check returns an error if the agent hangs: no pod is advanced any more, although the runtime
// and the API may answer, and a restart is the remedy. It restarts no container.
func (a *Agent) Check(ctx context.Context) error { return a.progress.Check(ctx) }

// watchLocks takes the locks of the agent and of its workers from time to time, so that Check
// notices when one is never released.
func (a *Agent) watchLocks(ctx context.Context) error {
	tick := time.NewTicker(lockPeriod)
	defer tick.Stop()
	for {
		a.progress.Begin()
		a.mu.Lock()
		for _, w := range a.workers {
			w.mu.Lock()
			_ = w.gone
			w.mu.Unlock()
		}
		a.mu.Unlock()
		a.progress.End()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

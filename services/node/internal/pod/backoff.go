package pod

import (
	"time"

	"keelson.dev/services/node/internal/cri"
)

// The delays between restarts of a crashing container: none before the first restart, then
// backoffBase, doubling up to backoffMax, and reset after an instance that ran for
// backoffReset. The values are the kubelet's.
const (
	backoffBase  = 10 * time.Second
	backoffMax   = 5 * time.Minute
	backoffReset = 2 * backoffMax
)

// Restart returns the time at which a container may follow prev, and the delay that will
// follow the new instance in turn. The current delay is stored in prev's annotations, so
// the result depends on no state in the agent.
func Restart(prev *cri.Container) (at time.Time, next time.Duration) {
	began := prev.StartedAt
	if began.IsZero() {
		began = prev.CreatedAt
	}
	ended := prev.FinishedAt
	if ended.IsZero() {
		ended = began
	}
	if ended.Sub(began) >= backoffReset {
		return ended, backoffBase
	}
	next = backoffBase
	if prev.Backoff > 0 {
		next = min(2*prev.Backoff, backoffMax)
	}
	return ended.Add(prev.Backoff), next
}

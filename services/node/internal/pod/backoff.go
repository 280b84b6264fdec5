package pod

import (
	"time"

	"keelson.dev/services/node/internal/cri"
)

// The delays between restarts of a crashing container: none before the first,
// then backoffBase, doubling up to backoffMax, forgotten after an instance that
// ran for backoffReset. These are the kubelet's values.
const (
	backoffBase  = 10 * time.Second
	backoffMax   = 5 * time.Minute
	backoffReset = 2 * backoffMax
)

// Restart says from when on a container may follow prev, and the delay that its
// own successor will have to wait. The delay travels in prev's annotations, so
// that the answer depends on no memory of the agent.
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

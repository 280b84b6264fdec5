package agent

import (
	"context"
	"time"
)

// settleTime is how long a call that creates something in the runtime may continue after
// the work that it belongs to has been cancelled.
const settleTime = 5 * time.Second

// settled returns a context for such a call. A call that is cut off may still succeed in
// the runtime after the agent has listed what to remove, and so leave an orphan; therefore
// it gets time to finish.
func settled(ctx context.Context) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(settleTime)
		defer timer.Stop()
		select {
		case <-out.Done():
		case <-timer.C:
			cancel()
		}
	})
	return out, func() { stop(); cancel() }
}

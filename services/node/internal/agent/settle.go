package agent

import (
	"context"
	"time"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/pod"

	corev1 "k8s.io/api/core/v1"
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

// discard removes a sandbox that was created while the agent was being stopped: whatever
// stops the agent may already have listed the sandboxes to remove.
func (w *worker) discard(ctx context.Context, p *corev1.Pod, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	err := w.a.cfg.Runtime.StopSandbox(ctx, id)
	if err == nil {
		err = w.a.cfg.Runtime.RemoveSandbox(ctx, id)
	}
	if err != nil {
		w.a.log.WarnContext(ctx, "sandbox created during shutdown was not removed", "pod", pod.Key(p), "sandbox", id, "error", cri.Message(err))
	}
}

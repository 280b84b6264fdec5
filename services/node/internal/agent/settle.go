package agent

import (
	"context"
	"time"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/pod"

	corev1 "k8s.io/api/core/v1"
)

// settleTime is how long a call that makes something in the runtime may go on
// after the work that it is for has been given up.
const settleTime = 5 * time.Second

// settled is a context for such a call. Cut off, the call might still succeed
// after everybody has looked at what there is to remove; so it is let finish.
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

// discard removes a sandbox that was made while the agent was being stopped:
// whoever stops it may have listed already what is left.
func (w *worker) discard(ctx context.Context, p *corev1.Pod, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	err := w.a.cfg.Runtime.StopSandbox(ctx, id)
	if err == nil {
		err = w.a.cfg.Runtime.RemoveSandbox(ctx, id)
	}
	if err != nil {
		w.a.log.Warn("sandbox made while stopping was not removed", "pod", pod.Key(p), "sandbox", id, "error", cri.Message(err))
	}
}

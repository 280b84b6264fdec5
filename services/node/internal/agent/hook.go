package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/probe"
)

// hookHTTPTimeout is the timeout of an httpGet hook.
const hookHTTPTimeout = time.Minute

// runHook runs a lifecycle hook to completion. Its error appears in events and in the pod's
// status, so it quotes neither the hook's command nor its output.
func (a *Agent) runHook(ctx context.Context, p *corev1.Pod, h *corev1.LifecycleHandler, c *corev1.Container, id, ip string) error {
	switch {
	case h.Exec != nil:
		_, _, code, err := a.cfg.Runtime.ExecSync(ctx, id, h.Exec.Command, 0)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return errors.New(probe.ExecFailure(err))
		case code != 0:
			return fmt.Errorf("command exited with code %d", code)
		}
	case h.HTTPGet != nil:
		fallback, err := probe.Hook(ctx, probe.Target{Container: c, ContainerID: id, PodIP: ip}, h.HTTPGet, hookHTTPTimeout)
		if err != nil {
			return fmt.Errorf("http request: %w", err)
		}
		if fallback != "" {
			a.cfg.Events.Pod(p, c.Name, corev1.EventTypeWarning, event.HookFallback,
				"request to HTTPS lifecycle hook %s got HTTP response, retry with HTTP succeeded", fallback)
		}
	case h.Sleep != nil:
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(h.Sleep.Seconds) * time.Second):
		}
	}
	return nil
}

// postStart runs a container's postStart hook, and stops the container if the hook fails.
func (w *worker) postStart(ctx context.Context, p *corev1.Pod, c *corev1.Container, id, ip string) error {
	err := w.a.runHook(ctx, p, c.Lifecycle.PostStart, c, id, ip)
	if err == nil || ctx.Err() != nil {
		return nil
	}
	w.a.cfg.Events.Pod(p, c.Name, corev1.EventTypeWarning, event.FailedPostStart, "PostStartHook failed: %v", err)
	w.a.killContainer(ctx, p, &cri.Pod{}, &cri.Container{ID: id, Name: c.Name}, time.Duration(graceOf(p))*time.Second, minGrace, "FailedPostStartHook", nil)
	return &startError{reason: reasonPostStart, message: err.Error(), retry: time.Now()}
}

// preStop runs a container's preStop hook, bounded by the grace period. A failure is
// reported in an event and otherwise ignored.
func (a *Agent) preStop(ctx context.Context, p *corev1.Pod, c *corev1.Container, id, ip string, grace time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	err := a.runHook(ctx, p, c.Lifecycle.PreStop, c, id, ip)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("hook did not finish within the grace period of %s", grace)
	}
	if err != nil && !errors.Is(ctx.Err(), context.Canceled) {
		a.cfg.Events.Pod(p, c.Name, corev1.EventTypeWarning, event.FailedPreStop, "PreStopHook failed: %v", err)
	}
}

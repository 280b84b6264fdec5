package agent

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/probe"
)

// hookHTTPTimeout bounds an httpGet hook.
const hookHTTPTimeout = time.Minute

// runHook runs a lifecycle hook to its end.
func (a *Agent) runHook(ctx context.Context, h *corev1.LifecycleHandler, c *corev1.Container, id, ip string) error {
	switch {
	case h.Exec != nil:
		stdout, stderr, code, err := a.cfg.Runtime.ExecSync(ctx, id, h.Exec.Command, 0)
		if err != nil {
			return fmt.Errorf("exec %q: %s", h.Exec.Command, cri.Message(err))
		}
		if code != 0 {
			return fmt.Errorf("command %q exited with %d: %s%s", h.Exec.Command, code, clip(stdout), clip(stderr))
		}
	case h.HTTPGet != nil:
		out, err := probe.RunHTTP(ctx, probe.Target{Container: c, ContainerID: id, PodIP: ip}, h.HTTPGet, hookHTTPTimeout)
		if err != nil {
			return err
		}
		if ok, message := out.Succeeded(); !ok {
			return fmt.Errorf("http hook: %s", message)
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

func clip(b []byte) string {
	if len(b) > 512 {
		b = b[:512]
	}
	return string(b)
}

// postStart runs a container's postStart hook; a container whose hook fails is
// ended.
func (w *worker) postStart(ctx context.Context, p *corev1.Pod, c *corev1.Container, id, ip string) error {
	err := w.a.runHook(ctx, c.Lifecycle.PostStart, c, id, ip)
	if err == nil || ctx.Err() != nil {
		return nil
	}
	w.a.cfg.Events.Pod(p, c.Name, corev1.EventTypeWarning, event.FailedPostStart, "PostStartHook failed: %v", err)
	w.a.killContainer(ctx, p, &cri.Pod{}, &cri.Container{ID: id, Name: c.Name}, time.Duration(graceOf(p))*time.Second, "FailedPostStartHook")
	return &startError{reason: reasonPostStart, message: err.Error(), retry: time.Now()}
}

// preStop runs a container's preStop hook within its grace period. Whether it
// fails changes nothing.
func (a *Agent) preStop(ctx context.Context, p *corev1.Pod, c *corev1.Container, id, ip string, grace time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err := a.runHook(ctx, c.Lifecycle.PreStop, c, id, ip); err != nil {
		a.cfg.Events.Pod(p, c.Name, corev1.EventTypeWarning, event.FailedPreStop, "PreStopHook failed: %v", err)
	}
}

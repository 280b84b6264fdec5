package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/pod"
)

// createSandbox creates the pod's sandbox. If that fails, it returns how long to wait
// before the next attempt.
func (w *worker) createSandbox(ctx context.Context, p *corev1.Pod, attempt uint32) time.Duration {
	if wait := time.Until(w.sandbox.until); wait > 0 {
		return wait
	}
	if !p.Spec.HostNetwork && !w.a.cfg.NetworkReady() {
		w.a.cfg.Events.Pod(p, "", corev1.EventTypeWarning, event.NetworkNotReady, "network is not ready: container runtime network not ready")
		w.sandbox.fail(sandboxRetryFirst, sandboxRetryFirst)
		return w.sandbox.delay
	}
	ctx, span := tracer.Start(ctx, "create sandbox", trace.WithAttributes(podAttributes(p)...))
	defer span.End()
	id, err := w.runSandbox(ctx, p, attempt)
	if err == nil && w.a.base.Err() != nil {
		w.discard(ctx, p, id)
		return time.Millisecond
	}
	if err != nil {
		if ctx.Err() != nil {
			return time.Millisecond
		}
		span.SetStatus(codes.Error, cri.Message(err))
		w.sandbox.fail(sandboxRetryFirst, sandboxRetryMost)
		w.a.cfg.Events.Pod(p, "", corev1.EventTypeWarning, event.FailedSandbox, "Failed to create pod sandbox: %s", cri.Message(err))
		w.a.log.WarnContext(ctx, "pod sandbox was not created", "pod", pod.Key(p), "error", err)
		return w.sandbox.delay
	}
	span.SetAttributes(attribute.String("sandbox", id))
	w.sandbox.ok()
	return 0
}

func (w *worker) runSandbox(ctx context.Context, p *corev1.Pod, attempt uint32) (string, error) {
	parent := ""
	if w.a.cfg.Cgroups != nil {
		if err := w.a.cfg.Cgroups.EnsurePod(p); err != nil {
			return "", fmt.Errorf("failed to ensure that the pod's cgroup exists: %w", err)
		}
		total := pod.PodTotal(p)
		w.resize.cgroup = &total
		parent = w.a.cfg.Cgroups.Pod(p)
		w.a.shareCPU(ctx)
	}
	config := pod.SandboxConfig(p, w.a.cfg.Settings, attempt, parent)
	if err := w.a.logs.Folder(pod.LogFolder(p), ""); err != nil {
		return "", fmt.Errorf("create log directory: %w", err)
	}
	if p.Spec.HostUsers != nil && !*p.Spec.HostUsers {
		return "", errors.New("hostUsers: false: this node does not support user namespaces")
	}
	handler, err := w.runtimeHandler(ctx, p)
	if err != nil {
		return "", err
	}
	call, cancel := settled(ctx)
	defer cancel()
	return w.a.cfg.Runtime.RunSandbox(call, config, handler)
}

// replaceSandbox stops everything in a sandbox that can no longer be used.
func (w *worker) replaceSandbox(ctx context.Context, p *corev1.Pod, state *cri.Pod) {
	if len(state.Sandboxes) == 0 {
		return
	}
	w.a.cfg.Events.Pod(p, "", corev1.EventTypeNormal, event.SandboxChanged, "Pod sandbox changed, it will be killed and re-created.")
	w.a.killPod(ctx, p, state, time.Duration(graceOf(p))*time.Second, minGrace)
	stopped := true
	for i := range state.Sandboxes {
		err := w.a.cfg.Runtime.StopSandbox(ctx, state.Sandboxes[i].ID)
		stopped = stopped && err == nil
		if err != nil && ctx.Err() == nil {
			w.a.log.WarnContext(ctx, "sandbox was not stopped", "pod", pod.Key(p), "sandbox", state.Sandboxes[i].ID, "error", cri.Message(err))
		}
	}
	if stopped {
		w.forgetPolicies()
	}
}

// usable reports whether a sandbox is still ready. If the runtime does not answer, the
// sandbox is assumed to be ready: starting a container in it will show.
func (w *worker) usable(ctx context.Context, sandbox string) bool {
	resp, err := w.a.cfg.Runtime.SandboxStatus(ctx, sandbox, false)
	if err != nil {
		return !cri.NotFound(err)
	}
	return resp.GetStatus().GetState() == runtimev1.PodSandboxState_SANDBOX_READY
}

// sandboxConfig returns the configuration that the pod's sandbox was created with, as far
// as the runtime reads it again for containers.
func (w *worker) sandboxConfig(p *corev1.Pod, state *cri.Pod) *runtimev1.PodSandboxConfig {
	attempt := uint32(0)
	if box := state.Sandbox(); box != nil {
		attempt = box.Attempt
	}
	parent := ""
	if w.a.cfg.Cgroups != nil {
		parent = w.a.cfg.Cgroups.Pod(p)
	}
	return pod.SandboxConfig(p, w.a.cfg.Settings, attempt, parent)
}

// runtimeHandler returns the runtime's name of the pod's RuntimeClass, or "" for the default
// handler. An unknown handler is refused by the runtime.
func (w *worker) runtimeHandler(ctx context.Context, p *corev1.Pod) (string, error) {
	name := p.Spec.RuntimeClassName
	if name == nil || *name == "" {
		return "", nil
	}
	class, err := w.a.objects.RuntimeClass(ctx, *name)
	if err != nil {
		return "", fmt.Errorf("failed to lookup RuntimeClass %s: %w", *name, err)
	}
	if class == nil {
		return "", fmt.Errorf("failed to lookup RuntimeClass %s: runtimeclass.node.k8s.io %q not found", *name, *name)
	}
	return class.Handler, nil
}

func podIP(p *corev1.Pod, state *cri.Pod, hostIPs []string) string {
	if p.Spec.HostNetwork {
		if len(hostIPs) > 0 {
			return hostIPs[0]
		}
		return ""
	}
	if box := state.Sandbox(); box != nil && len(box.IPs) > 0 {
		return box.IPs[0]
	}
	return ""
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

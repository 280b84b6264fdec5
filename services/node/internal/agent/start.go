package agent

import (
	"context"
	"errors"
	"path/filepath"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/image"
	"keelson.dev/services/node/internal/pod"
)

// Waiting reasons of a container that could not be started.
const (
	reasonConfig    = "CreateContainerConfigError"
	reasonCreate    = "CreateContainerError"
	reasonRun       = "RunContainerError"
	reasonPostStart = "PostStartHookError"
)

// startError explains why a container could not be started and when to try again.
type startError struct {
	reason, message string
	retry           time.Time
}

func (e *startError) Error() string { return e.reason + ": " + e.message }

// spanStatus returns what a span records about a container that was not started. The
// runtime's messages are left out, because they quote the container's command.
func spanStatus(err error) string {
	var start *startError
	if errors.As(err, &start) && start.reason != reasonConfig {
		return start.reason
	}
	return err.Error()
}

// startContainers starts the plan's containers one after the other. changed is true if the
// runtime's state has changed.
func (w *worker) startContainers(ctx context.Context, p *corev1.Pod, state *cri.Pod, plan pod.Plan, at *wakeTimes) (changed bool) {
	for _, s := range plan.Start {
		name := s.Container.Name
		if h, ok := w.waiting[name]; ok && time.Now().Before(h.until) && !w.a.objects.changedSince(w.uid, h.since) {
			at.add(h.until)
			continue
		}
		if s.RestartCount > 0 && !w.usable(ctx, plan.SandboxID) {
			return true // the sandbox was lost together with the container: the next plan creates another
		}
		err := w.startContainer(ctx, p, state, plan.SandboxID, s)
		if ctx.Err() != nil {
			return true
		}
		if err == nil {
			delete(w.waiting, name)
			w.startedAt = time.Now()
			changed = true
			continue
		}
		h := hold{state: corev1.ContainerStateWaiting{Reason: reasonCreate, Message: err.Error()}, since: time.Now(), until: time.Now().Add(configRetry)}
		var start *startError
		var pull *image.Error
		switch {
		case errors.As(err, &start):
			h.state.Reason, h.state.Message = start.reason, start.message
			if !start.retry.IsZero() {
				h.until = start.retry
			}
			if start.reason == reasonRun || start.reason == reasonPostStart {
				changed = true // the runtime now has an ended instance
			}
		case errors.As(err, &pull):
			h.state.Reason, h.state.Message = pull.Reason, pull.Message
			if !pull.Retry.IsZero() {
				h.until = pull.Retry
			}
			if pull.Reason == image.ReasonPull {
				// Shown as ErrImagePull for a second; after that the image is in back-off.
				at.add(time.Now().Add(time.Second))
				w.waiting[name] = hold{state: h.state, since: h.since, until: time.Now().Add(time.Second)}
				w.show(ctx, p, plan)
				continue
			}
		}
		w.waiting[name] = h
		at.add(h.until)
		w.show(ctx, p, plan)
	}
	return changed
}

// startContainer pulls the image, creates the container, starts it and runs its postStart
// hook.
func (w *worker) startContainer(ctx context.Context, p *corev1.Pod, state *cri.Pod, sandbox string, s pod.Start) (err error) {
	c := s.Container
	ctx, span := tracer.Start(ctx, "start container "+c.Name, trace.WithAttributes(append(podAttributes(p), attribute.String("k8s.container.name", c.Name))...))
	defer func() {
		if err != nil {
			span.SetStatus(codes.Error, spanStatus(err))
		}
		span.End()
	}()
	if err := w.a.awaitServices(ctx, p); err != nil {
		return err
	}
	if err := w.admitPolicies(ctx, p, state); err != nil {
		return err
	}
	sandboxConfig := w.sandboxConfig(p, state)
	found, err := w.a.images.Ensure(ctx, p, c, w.pullSecrets(ctx, p), sandboxConfig)
	if err != nil {
		return err
	}
	config, err := w.containerConfig(ctx, p, state, s, found, sandboxConfig)
	var pull *image.Error
	if errors.As(err, &pull) {
		return err // of an image that is mounted as a volume
	}
	if err != nil {
		w.a.cfg.Events.Pod(p, c.Name, corev1.EventTypeWarning, event.Failed, "Error: %v", err)
		return &startError{reason: reasonConfig, message: err.Error()}
	}
	for _, old := range state.Instances(c.Name) {
		// Remove an instance that was created but never started, and one with the same
		// restart count: the runtime derives the container's unique name from that count.
		if old.State == cri.StateCreated || old.State == cri.StateExited && old.RestartCount == s.RestartCount {
			if err := w.a.cfg.Runtime.RemoveContainer(ctx, old.ID); err != nil {
				return &startError{reason: reasonCreate, message: cri.Message(err)}
			}
		}
	}
	call, cancel := settled(ctx)
	defer cancel()
	id, err := w.a.cfg.Runtime.CreateContainer(call, sandbox, config, sandboxConfig)
	if err != nil {
		w.a.cfg.Events.Pod(p, c.Name, corev1.EventTypeWarning, event.Failed, "Error: %s", cri.Message(err))
		return &startError{reason: reasonCreate, message: cri.Message(err)}
	}
	w.a.cfg.Events.Pod(p, c.Name, corev1.EventTypeNormal, event.Created, "Container created")
	w.resize.applied[id] = config.Linux.Resources
	if err := ctx.Err(); err != nil {
		return err // the next sync finds a container that was created but not started
	}
	if err := w.a.cfg.Runtime.StartContainer(call, id); err != nil {
		w.a.cfg.Events.Pod(p, c.Name, corev1.EventTypeWarning, event.Failed, "Error: %s", cri.Message(err))
		return &startError{reason: reasonRun, message: cri.Message(err), retry: time.Now()}
	}
	span.SetAttributes(attribute.String("container.id", id))
	w.linkLog(ctx, p, c.Name, id, filepath.Join(sandboxConfig.LogDirectory, config.LogPath))
	w.a.cfg.Events.Pod(p, c.Name, corev1.EventTypeNormal, event.Started, "Container started")
	if c.Lifecycle == nil || c.Lifecycle.PostStart == nil {
		return nil
	}
	return w.postStart(ctx, p, c, id, podIP(p, state, w.a.cfg.HostIPs()))
}

// linkLog creates the link through which log collectors find an instance's log.
func (w *worker) linkLog(ctx context.Context, p *corev1.Pod, container, id, path string) {
	if path == "" || w.linked[id] {
		return
	}
	w.linked[id] = true
	if err := w.a.logs.Link(p.Name, p.Namespace, container, id, path); err != nil {
		w.a.log.WarnContext(ctx, "container log was not linked", "pod", pod.Key(p), "container", container, "error", err)
	}
}

// awaitServices waits until the Services are known, because their addresses become
// environment variables. A static pod may be what the API needs, and does not wait.
func (a *Agent) awaitServices(ctx context.Context, p *corev1.Pod) error {
	if a.cfg.ServicesSynced == nil || pod.IsStatic(p) {
		return nil
	}
	select {
	case <-a.cfg.ServicesSynced:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(objectPatience):
		return &startError{reason: reasonConfig, message: "services have not yet been read at least once, cannot construct envvars", retry: time.Now().Add(time.Second)}
	}
}

// pullSecrets returns the pod's image pull secrets. Missing ones are left out, because the
// image may not need them.
func (w *worker) pullSecrets(ctx context.Context, p *corev1.Pod) []*corev1.Secret {
	var out []*corev1.Secret
	for _, ref := range p.Spec.ImagePullSecrets {
		s, err := w.a.objects.Secret(ctx, p.Namespace, ref.Name)
		if err != nil || s == nil {
			w.a.cfg.Events.Pod(p, "", corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
				"Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", ref.Name)
			continue
		}
		out = append(out, s)
	}
	return out
}

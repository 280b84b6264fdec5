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

	"keelson.dev/services/internal/telemetry"
	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/pod"
)

const (
	sandboxRetryFirst = time.Second
	sandboxRetryMost  = 30 * time.Second
	volumeRetryFirst  = 500 * time.Millisecond
	volumeRetryMost   = 2 * time.Minute
	// configRetry is how soon a container is tried again whose configuration
	// cannot be made; a change of what it refers to comes first.
	configRetry = 10 * time.Second
)

// advance takes a pod that is meant to run one step further, and says when to
// look again.
func (w *worker) advance(ctx context.Context, p *corev1.Pod, state *cri.Pod, traceparent string) time.Duration {
	var at wakeTimes
	if d := p.Spec.ActiveDeadlineSeconds; d != nil {
		if p.Status.StartTime != nil {
			at.add(p.Status.StartTime.Add(time.Duration(*d) * time.Second))
		}
	}
	for i := range state.Containers {
		c := &state.Containers[i]
		w.linkLog(p, c.Name, c.ID, c.LogPath)
	}
	w.a.probes.Sync(w.a.base, p, state, podIP(p, state, w.a.cfg.HostIPs()), false)
	verdicts := w.a.probes.Verdicts(w.uid)
	plan := pod.Make(pod.View{Pod: p, Runtime: state, Now: time.Now(), Started: verdicts.Started, Unhealthy: verdicts.Unhealthy})
	at.add(plan.Wake)
	if plan.Finished {
		w.finished = true
		return w.end(ctx, p, state, traceparent)
	}
	waiting := w.held(plan)
	w.sayHeldBack(p, state, plan)
	w.publish(p, state, verdicts, waiting, traceparent)

	for _, k := range plan.Kill {
		w.killOne(ctx, p, k)
	}
	if plan.KillAll {
		w.replaceSandbox(ctx, p, state)
	}
	if len(plan.Kill) > 0 || plan.KillAll {
		if ctx.Err() != nil {
			return 0
		}
		if plan.KillAll && !plan.CreateSandbox {
			return 0
		}
	}
	if plan.CreateSandbox || len(plan.Start) > 0 || !w.mounted {
		if wait := w.mountVolumes(ctx, p); wait > 0 {
			at.add(time.Now().Add(wait))
			return at.wait()
		}
	} else {
		w.refreshVolumes(ctx, p, &at)
	}
	if plan.CreateSandbox {
		if wait := w.createSandbox(ctx, p, plan.Attempt); wait > 0 {
			at.add(time.Now().Add(wait))
		} else {
			at.add(time.Now()) // the next plan starts containers
		}
		return at.wait()
	}
	started := w.startContainers(ctx, p, state, plan, &at)
	if started || len(plan.Kill) > 0 {
		at.add(time.Now())
	} else {
		w.prune(ctx, p, state)
	}
	return at.wait()
}

// held are the reasons why containers do not run: the plan's, and those of
// attempts to start them that failed.
func (w *worker) held(plan pod.Plan) map[string]corev1.ContainerStateWaiting {
	out := map[string]corev1.ContainerStateWaiting{}
	for _, s := range plan.Start {
		if h, ok := w.waiting[s.Container.Name]; ok {
			out[s.Container.Name] = h.state
		}
	}
	for name, state := range plan.Waiting {
		out[name] = state
	}
	return out
}

// sayHeldBack reports, once an instance, that a container is held back.
func (w *worker) sayHeldBack(p *corev1.Pod, state *cri.Pod, plan pod.Plan) {
	for name := range plan.Waiting {
		last := state.Latest(name)
		if last == nil || w.said[name] == last.ID {
			continue
		}
		w.said[name] = last.ID
		w.a.cfg.Events.Pod(p, name, corev1.EventTypeWarning, event.BackOff, "Back-off restarting failed container %s in pod %s_%s(%s)", name, p.Name, p.Namespace, p.UID)
	}
}

// mountVolumes makes the pod's volumes; it returns how long to wait before the
// next attempt if that failed.
func (w *worker) mountVolumes(ctx context.Context, p *corev1.Pod) time.Duration {
	if w.mounted {
		return 0
	}
	if wait := time.Until(w.volumes.until); wait > 0 && !w.objectsChanged(p) {
		return wait
	}
	ctx, span := tracer.Start(ctx, "mount volumes", trace.WithAttributes(podAttributes(p)...))
	defer span.End()
	if err := w.a.volumes.Mount(ctx, p); err != nil {
		if ctx.Err() != nil {
			return time.Millisecond
		}
		span.SetStatus(codes.Error, err.Error())
		w.volumes.fail(volumeRetryFirst, volumeRetryMost)
		for _, one := range unjoin(err) {
			w.a.cfg.Events.Pod(p, "", corev1.EventTypeWarning, event.FailedMount, "%v", one)
		}
		return w.volumes.delay
	}
	w.volumes.ok()
	w.mounted = true
	return 0
}

// objectsChanged lets a change of what a pod refers to cut a delay short.
func (w *worker) objectsChanged(p *corev1.Pod) bool {
	return w.a.objects.changedSince(w.uid, w.volumes.until.Add(-w.volumes.delay))
}

func unjoin(err error) []error {
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) {
		return joined.Unwrap()
	}
	return []error{err}
}

// refreshVolumes brings volumes made of objects up to date.
func (w *worker) refreshVolumes(ctx context.Context, p *corev1.Pod, at *wakeTimes) {
	next, err := w.a.volumes.Refresh(ctx, p)
	if err != nil && ctx.Err() == nil {
		w.a.log.Debug("volumes were not refreshed", "pod", pod.Key(p), "error", err)
		next = time.Now().Add(configRetry)
	}
	at.add(next)
}

// createSandbox makes the pod's sandbox; it returns how long to wait before the
// next attempt if that failed.
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
		w.a.log.Warn("pod sandbox was not created", "pod", pod.Key(p), "error", err)
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
		parent = w.a.cfg.Cgroups.Pod(p)
		w.a.shareCPU()
	}
	config := pod.SandboxConfig(p, w.a.cfg.Settings, attempt, parent)
	if err := w.a.logs.Folder(pod.LogFolder(p), ""); err != nil {
		return "", fmt.Errorf("make the folder of logs: %w", err)
	}
	handler := ""
	if p.Spec.RuntimeClassName != nil {
		return "", fmt.Errorf("runtimeClassName %q: this cluster has no runtime classes", *p.Spec.RuntimeClassName)
	}
	call, cancel := settled(ctx)
	defer cancel()
	return w.a.cfg.Runtime.RunSandbox(call, config, handler)
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

func podAttributes(p *corev1.Pod) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("k8s.pod.name", p.Name), attribute.String("k8s.namespace.name", p.Namespace), attribute.String("k8s.pod.uid", string(p.UID)),
		attribute.String("k8s.node.name", p.Spec.NodeName),
	}
}

// traceReady records, once, how long it took from the last container's start to
// the pod being ready.
func (w *worker) traceReady(p *corev1.Pod, s *corev1.PodStatus, traceparent string) {
	if w.readied || traceparent == "" {
		return
	}
	for _, c := range s.Conditions {
		if c.Type != corev1.PodReady || c.Status != corev1.ConditionTrue {
			continue
		}
		w.readied = true
		began := w.startedAt
		if began.IsZero() {
			return // it was ready before this agent began
		}
		_, span := tracer.Start(telemetry.ContextWithTraceparent(context.Background(), traceparent), "become ready",
			trace.WithTimestamp(began), trace.WithAttributes(podAttributes(p)...))
		span.End()
	}
}

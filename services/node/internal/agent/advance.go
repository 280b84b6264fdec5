package agent

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/pod"
)

const (
	sandboxRetryFirst = time.Second
	sandboxRetryMost  = 30 * time.Second
	volumeRetryFirst  = 500 * time.Millisecond
	volumeRetryMost   = 2 * time.Minute
	// configRetry is the delay before a container whose configuration could not be built is
	// tried again. A change to an object that it refers to cuts the delay short.
	configRetry = 10 * time.Second
)

// advance takes a pod that should be running one step further, and returns how long to wait
// before the next step.
func (w *worker) advance(ctx context.Context, p *corev1.Pod, state *cri.Pod, traceparent string) time.Duration {
	var at wakeTimes
	if d := p.Spec.ActiveDeadlineSeconds; d != nil {
		if p.Status.StartTime != nil {
			at.add(p.Status.StartTime.Add(time.Duration(*d) * time.Second))
		}
	}
	for i := range state.Containers {
		c := &state.Containers[i]
		w.linkLog(ctx, p, c.Name, c.ID, c.LogPath)
	}
	w.policies(p, state)
	w.a.probes.Sync(w.a.base, p, state, podIP(p, state, w.a.cfg.HostIPs()), false)
	verdicts := w.a.probes.Verdicts(w.uid)
	plan := pod.Make(pod.View{Pod: p, Runtime: state, Now: time.Now(), Started: verdicts.Started, Unhealthy: verdicts.Unhealthy,
		Replaced: func(id string) bool { return w.resize.replaced[id] },
	})
	at.add(plan.Wake)
	if plan.Finished {
		w.finished = true
		return w.end(ctx, p, state, traceparent)
	}
	waiting := w.held(plan)
	w.reportBackOff(p, state, plan)
	w.publish(p, state, verdicts, waiting, traceparent)
	if !w.enter(p) {
		at.add(time.Now().Add(fenceRetry))
		return at.wait()
	}

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
			at.add(time.Now()) // the next sync starts containers
		}
		return at.wait()
	}
	resized := len(plan.Kill) == 0 && w.resizeContainers(ctx, p, state, &at)
	started := w.startContainers(ctx, p, state, plan, &at)
	if started || resized || len(plan.Kill) > 0 {
		at.add(time.Now())
	} else {
		w.prune(ctx, p, state)
	}
	return at.wait()
}

// mountVolumes sets up the pod's volumes. If that fails, it returns how long to wait before
// the next attempt.
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

// objectsChanged reports whether an object that the pod refers to has changed since its
// volumes last failed to mount. Such a change cuts the delay short.
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

// refreshVolumes updates the volumes whose content comes from API objects.
func (w *worker) refreshVolumes(ctx context.Context, p *corev1.Pod, at *wakeTimes) {
	next, err := w.a.volumes.Refresh(ctx, p)
	if err != nil && ctx.Err() == nil {
		w.a.log.DebugContext(ctx, "volumes were not refreshed", "pod", pod.Key(p), "error", err)
		next = time.Now().Add(configRetry)
	}
	at.add(next)
}

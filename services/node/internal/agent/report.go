package agent

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/internal/telemetry"
	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/pod"
	"keelson.dev/services/node/internal/probe"
	"keelson.dev/services/node/internal/status"
)

// publish derives the pod's status from the runtime's state and hands it to the writer.
func (w *worker) publish(p *corev1.Pod, state *cri.Pod, v probe.Verdicts, waiting map[string]corev1.ContainerStateWaiting, traceparent string) *corev1.PodStatus {
	base, shown := p, p
	latest := w.latest
	if pod.IsStatic(p) {
		if shown = w.a.mirrorOf(p); latest == nil && shown != nil && !pod.Terminal(shown) {
			latest = &shown.Status // of an earlier agent
		}
	}
	if latest != nil {
		// Compute transitions from the status written last: the watch may not have returned
		// it yet.
		shallow := *p
		shallow.Status = *latest
		shallow.Status.Conditions = mergeConditions(p, latest)
		if pod.Terminal(p) {
			shallow.Status.Phase = p.Status.Phase
		}
		base = &shallow
	}
	s := status.Make(status.View{
		Pod: base, Runtime: state, Now: time.Now(), RuntimeName: w.a.runtimeName, HostIPs: w.a.cfg.HostIPs(),
		Waiting: waiting, Started: v.Started, Ready: v.Ready, TerminationMessage: terminationMessage,
		Ended: w.ended, Refused: w.refused, Finished: w.finished, Resize: w.resize.state,
	})
	w.a.cfg.Metrics.changed(&base.Status, &s)
	w.mu.Lock()
	w.latest = &s
	w.mu.Unlock()
	switch {
	case shown == nil:
	case shown != p && w.a.outlived(shown):
		nudge(w.a.static.mirrors)
	default:
		w.a.writer.Set(shown, &s, traceparent)
	}
	w.hostPorts(p, state)
	w.traceReady(p, &s, traceparent)
	return &s
}

// mergeConditions merges our latest conditions with those that other writers have set.
func mergeConditions(p *corev1.Pod, latest *corev1.PodStatus) []corev1.PodCondition {
	out := append([]corev1.PodCondition(nil), latest.Conditions...)
	for _, c := range p.Status.Conditions {
		found := false
		for i := range out {
			if out[i].Type == c.Type {
				found = true
				if !status.Owned(c) {
					out[i] = c
				}
			}
		}
		if !found {
			out = append(out, c)
		}
	}
	return out
}

// show publishes the pod's status between two steps of a sync.
func (w *worker) show(ctx context.Context, p *corev1.Pod, plan pod.Plan) {
	state, err := w.a.cfg.Runtime.Pod(ctx, string(w.uid))
	if err != nil {
		return
	}
	w.a.probes.Sync(w.a.base, p, state, podIP(p, state, w.a.cfg.HostIPs()), false)
	w.mu.Lock()
	traceparent := w.traceparent
	w.mu.Unlock()
	w.publish(p, state, w.a.probes.Verdicts(w.uid), w.held(plan), traceparent)
}

// held returns why containers are not running: the plan's reasons, and those of failed
// attempts to start them.
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

// reportBackOff records an event for each container in back-off, once per instance.
func (w *worker) reportBackOff(p *corev1.Pod, state *cri.Pod, plan pod.Plan) {
	for name, waits := range plan.Waiting {
		last := state.Latest(name)
		if last == nil && waits.Reason == reasonConfig && w.backOffs[name] == "" {
			w.backOffs[name] = waits.Reason // an ephemeral container whose target does not exist
			w.a.cfg.Events.Pod(p, name, corev1.EventTypeWarning, event.Failed, "Error: %s", waits.Message)
		}
		if last == nil || w.backOffs[name] == last.ID {
			continue
		}
		w.backOffs[name] = last.ID
		w.a.cfg.Events.Pod(p, name, corev1.EventTypeWarning, event.BackOff, "Back-off restarting failed container %s in pod %s_%s(%s)", name, p.Name, p.Namespace, p.UID)
	}
}

// traceReady records, once, the time from the last container's start until the pod became
// ready.
func (w *worker) traceReady(p *corev1.Pod, s *corev1.PodStatus, traceparent string) {
	if w.readyTraced || traceparent == "" {
		return
	}
	for _, c := range s.Conditions {
		if c.Type != corev1.PodReady || c.Status != corev1.ConditionTrue {
			continue
		}
		w.readyTraced = true
		began := w.startedAt
		if began.IsZero() {
			return // the pod was ready before this agent started
		}
		_, span := tracer.Start(telemetry.ContextWithTraceparent(context.Background(), traceparent), "become ready",
			trace.WithTimestamp(began), trace.WithAttributes(podAttributes(p)...))
		span.End()
	}
}

func podAttributes(p *corev1.Pod) []attribute.KeyValue {
	return []attribute.KeyValue{
		attribute.String("k8s.pod.name", p.Name), attribute.String("k8s.namespace.name", p.Namespace), attribute.String("k8s.pod.uid", string(p.UID)),
		attribute.String("k8s.node.name", p.Spec.NodeName),
	}
}

package scheduler

import (
	"context"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"keelson.dev/services/internal/telemetry"
	"keelson.dev/services/scheduler/internal/decide"
	"keelson.dev/services/scheduler/internal/queue"
)

// traced is the span of one attempt, from the decision to the binding. The zero value,
// for a pod without a trace, does nothing.
type traced struct{ span trace.Span }

func tracer() trace.Tracer { return otel.Tracer("keelson.dev/services/scheduler") }

// startTrace begins the span of a pod that gets a node, as a child of the write that
// created the pod.
func startTrace(it *queue.Item, v *decide.Verdict, began time.Time) traced {
	if it.Traceparent == "" {
		return traced{}
	}
	ctx := telemetry.ContextWithTraceparent(context.Background(), it.Traceparent)
	_, span := tracer().Start(ctx, "schedule pod", trace.WithTimestamp(began), trace.WithAttributes(
		attribute.String("k8s.namespace.name", it.Pod.Namespace),
		attribute.String("k8s.pod.name", it.Pod.Name),
		attribute.String("k8s.node.name", v.Node.Name),
		attribute.Int("scheduler.nodes.feasible", v.Feasible),
		attribute.Int("scheduler.nodes.total", v.Nodes),
		attribute.Int("scheduler.attempt", it.Attempts),
		attribute.Int64("scheduler.queued.ms", began.Sub(it.Added).Milliseconds()),
	))
	return traced{span}
}

// traceparent returns the trace context to pass on with the binding.
func (t traced) traceparent(it *queue.Item) string {
	if t.span == nil {
		return it.Traceparent
	}
	return telemetry.Traceparent(trace.ContextWithSpan(context.Background(), t.span))
}

func (t traced) end(err error) {
	if t.span == nil {
		return
	}
	if err != nil {
		t.span.SetStatus(codes.Error, err.Error())
	}
	t.span.End()
}

// traceRefusal records an attempt that ended with a new reason why there is no node.
func traceRefusal(it *queue.Item, v *decide.Verdict, began, ended time.Time) {
	if it.Traceparent == "" {
		return
	}
	ctx := telemetry.ContextWithTraceparent(context.Background(), it.Traceparent)
	_, span := tracer().Start(ctx, "schedule pod", trace.WithTimestamp(began), trace.WithAttributes(
		attribute.String("k8s.namespace.name", it.Pod.Namespace),
		attribute.String("k8s.pod.name", it.Pod.Name),
		attribute.Int("scheduler.nodes.total", v.Nodes),
		attribute.Int("scheduler.attempt", it.Attempts),
		attribute.StringSlice("scheduler.refused.by", v.Plugins),
	))
	span.SetStatus(codes.Error, v.Message)
	span.End(trace.WithTimestamp(ended))
}

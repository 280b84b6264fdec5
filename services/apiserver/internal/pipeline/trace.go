package pipeline

import (
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/internal/telemetry"
)

// traceAnnotation is the W3C trace context that a client gives an object where it
// cannot send a header.
const traceAnnotation = "tracing.k8s.io/traceparent"

var tracer = otel.Tracer("keelson.dev/apiserver/pipeline")

// trace chooses the trace context that is stored beside the object: that of the
// request; where the request has none of its own, the one that the object's new
// annotation names; for what only reports on a change, the change's.
func (p *Pipeline) trace(c *change, s *step) {
	s.trace = telemetry.Traceparent(c.ctx)
	if annotated := annotation(c, s.obj); annotated != "" && !hasParent(c) {
		ctx := telemetry.ContextWithTraceparent(c.ctx, annotated)
		ctx, span := tracer.Start(ctx, "store "+c.kind.Resource, trace.WithAttributes(
			attribute.String("k8s.resource", c.kind.Resource),
			attribute.String("k8s.namespace.name", c.target.Namespace),
			attribute.String("k8s.object.name", s.obj.GetName()),
		))
		s.finish = append(s.finish, func(bool) { span.End() })
		if tp := telemetry.Traceparent(ctx); tp != "" {
			s.trace = tp
		}
	}
	if s.trace == "" && s.keepTrace && c.cur != nil {
		s.trace = c.cur.Traceparent
	}
}

// annotation is the trace context that this write annotates the object with.
func annotation(c *change, obj resource.Object) string {
	tp := obj.GetAnnotations()[traceAnnotation]
	if tp == "" || c.cur != nil && c.cur.Object.GetAnnotations()[traceAnnotation] == tp {
		return ""
	}
	if _, ok := telemetry.ParseTraceparent(tp); !ok {
		return ""
	}
	return tp
}

// hasParent tells whether the client sent a trace context with the request.
func hasParent(c *change) bool {
	span := trace.SpanFromContext(c.ctx)
	if child, ok := span.(interface{ Parent() trace.SpanContext }); ok {
		return child.Parent().IsValid()
	}
	return span.SpanContext().IsValid()
}

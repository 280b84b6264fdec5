package pipeline

import (
	"slices"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"keelson.dev/services/apiserver/internal/authn"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/internal/telemetry"
)

// traceAnnotation is the annotation for a W3C trace context from a client that cannot send it as
// a header.
const traceAnnotation = "tracing.k8s.io/traceparent"

var tracer = otel.Tracer("keelson.dev/apiserver/pipeline")

// trace sets the trace context that is stored with the object: that of the request; if the client
// sent none, the one in a newly set annotation of the object; and for a write that only reports
// on an earlier change, the trace context of that change.
func (p *Pipeline) trace(c *change, s *step) {
	s.trace = telemetry.Traceparent(c.ctx)
	if annotated := annotation(c, s.obj); annotated != "" && !hasParent(c) && mayTrace(c.user) {
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

// mayTrace reports whether a user may choose the trace of a write. As in the fronts, an
// unauthenticated user may not start or extend a trace.
func mayTrace(u request.User) bool { return !slices.Contains(u.Groups, authn.UnauthenticatedGroup) }

// annotation returns the trace context that this write has added as an annotation, or "".
func annotation(c *change, obj resource.Object) string {
	tp := obj.GetAnnotations()[traceAnnotation]
	if tp == "" || c.cur != nil && c.cur.Object().GetAnnotations()[traceAnnotation] == tp {
		return ""
	}
	if _, ok := telemetry.ParseTraceparent(tp); !ok {
		return ""
	}
	return tp
}

// hasParent reports whether the client sent a trace context with the request.
func hasParent(c *change) bool {
	span := trace.SpanFromContext(c.ctx)
	if child, ok := span.(interface{ Parent() trace.SpanContext }); ok {
		return child.Parent().IsValid()
	}
	return span.SpanContext().IsValid()
}

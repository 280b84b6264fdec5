package grpc

import (
	"context"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// describe names the call's span after what it does, such as "create pods/binding". The recorder
// truncates long values.
func describe(ctx context.Context, verb string, r *resourcev1.Ref) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	name := verb + " " + r.GetResource()
	if r.GetSubresource() != "" {
		name += "/" + r.GetSubresource()
	}
	span.SetName(name)
	span.SetAttributes(
		attribute.String("k8s.resource", r.GetResource()),
		attribute.String("k8s.namespace.name", r.GetNamespace()),
		attribute.String("k8s.object.name", r.GetName()),
		attribute.String("user_agent.original", userAgent(ctx)),
	)
}

// describeCommit names the span of a batch.
func describeCommit(ctx context.Context, writes int) {
	if span := trace.SpanFromContext(ctx); span.IsRecording() {
		span.SetName("commit")
		span.SetAttributes(attribute.Int("keelson.writes", writes), attribute.String("user_agent.original", userAgent(ctx)))
	}
}

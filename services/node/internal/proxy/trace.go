package proxy

import (
	"context"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"keelson.dev/services/internal/telemetry"
)

// startSpan begins the span of one sync as a child of the first write that
// caused it, linked to the others. A sync without a cause (the first one, a
// repair) has no span.
func startSpan(ctx context.Context, c changes) (context.Context, func(Applied, error)) {
	if len(c.causes) == 0 {
		return ctx, func(Applied, error) {}
	}
	var links []trace.Link
	for _, tp := range c.causes[1:] {
		if link, ok := telemetry.Link(tp); ok && tp != c.causes[0] {
			links = append(links, link)
		}
	}
	ctx = telemetry.ContextWithTraceparent(ctx, c.causes[0])
	ctx, span := otel.Tracer("keelson.dev/services/node/proxy").Start(ctx, "proxy sync", trace.WithLinks(links...))
	return ctx, func(a Applied, err error) {
		span.SetAttributes(
			attribute.Int("keelson.services", a.Services),
			attribute.Int("keelson.nft.operations", a.Operations),
			attribute.Bool("keelson.proxy.full", a.Full))
		if len(c.services) == 1 {
			span.SetAttributes(attribute.String("keelson.service", c.services[0].String()))
		}
		if err != nil {
			span.SetStatus(codes.Error, err.Error())
		}
		span.End()
	}
}

package proxy

import (
	"context"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"keelson.dev/services/internal/telemetry"
)

// record emits a span for a sync that changed the table: a child of the first write that
// caused it, with links to the others. A sync without a cause (the first one, or a repair)
// gets no span, and neither does one that had nothing to do.
func record(ctx context.Context, c changes, begin time.Time, a Applied, err error) {
	if len(c.causes) == 0 || (a.Operations == 0 && err == nil) {
		return
	}
	var links []trace.Link
	for _, tp := range c.causes[1:] {
		if link, ok := telemetry.Link(tp); ok && tp != c.causes[0] {
			links = append(links, link)
		}
	}
	ctx = telemetry.ContextWithTraceparent(ctx, c.causes[0])
	_, span := otel.Tracer("keelson.dev/services/node/proxy").Start(ctx, "proxy sync",
		trace.WithTimestamp(begin), trace.WithLinks(links...), trace.WithAttributes(
			attribute.Int("keelson.services", a.Services),
			attribute.Int("keelson.nft.operations", a.Operations),
			attribute.Bool("keelson.proxy.full", a.Full)))
	if len(c.services) == 1 {
		span.SetAttributes(attribute.String("keelson.service", c.services[0].String()))
	}
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

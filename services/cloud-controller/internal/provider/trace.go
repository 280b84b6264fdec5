package provider

import (
	"context"
	"net/netip"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Traced records a span for each change that a provider makes. A provider in another
// process does not need it, because its RPCs are traced.
func Traced(p Provider) Provider { return traced{p} }

type traced struct{ Provider }

func (t traced) EnsureLoadBalancer(ctx context.Context, lb LoadBalancer) ([]netip.Addr, error) {
	ctx, span := start(ctx, "cloud EnsureLoadBalancer", attribute.String("keelson.service", lb.Service), attribute.Int("keelson.targets", len(lb.Targets)))
	addrs, err := t.Provider.EnsureLoadBalancer(ctx, lb)
	if len(addrs) > 0 {
		span.SetAttributes(attribute.String("keelson.address", addrs[0].String()))
	}
	end(span, err)
	return addrs, err
}

func (t traced) DeleteLoadBalancer(ctx context.Context, cluster, id string) error {
	ctx, span := start(ctx, "cloud DeleteLoadBalancer")
	err := t.Provider.DeleteLoadBalancer(ctx, cluster, id)
	end(span, err)
	return err
}

func (t traced) Instance(ctx context.Context, name, providerID string) (Instance, error) {
	ctx, span := start(ctx, "cloud GetInstance", attribute.String("k8s.node.name", name))
	i, err := t.Provider.Instance(ctx, name, providerID)
	end(span, err)
	return i, err
}

// start begins a span if its parent is recorded. Periodic checks have no parent.
func start(ctx context.Context, name string, attrs ...attribute.KeyValue) (context.Context, trace.Span) {
	if !trace.SpanContextFromContext(ctx).IsSampled() {
		return ctx, trace.SpanFromContext(ctx)
	}
	return otel.Tracer("keelson.dev/services/cloud-controller").Start(ctx, name, trace.WithAttributes(attrs...))
}

func end(span trace.Span, err error) {
	if !span.SpanContext().IsSampled() {
		return
	}
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

package proxy

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"k8s.io/apimachinery/pkg/types"
)

// Not parallel: it replaces the process's tracer provider.
func TestSyncsAreRecordedUnderTheirCause(t *testing.T) {
	spans := tracetest.NewSpanRecorder()
	before := otel.GetTracerProvider()
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample()))))
	defer otel.SetTracerProvider(before)
	const first = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	const second = "00-1af7651916cd43dd8448eb211c80319c-c7ad6b7169203331-01"
	ctx, begin := context.Background(), time.Now().Add(-time.Second)
	one := []types.NamespacedName{{Namespace: "ns", Name: "web"}}
	record(ctx, changes{services: one}, begin, Applied{Operations: 3}, nil)                           // without a cause
	record(ctx, changes{services: one, causes: []string{first}}, begin, Applied{Services: 1}, nil)    // nothing to do
	record(ctx, changes{services: one, causes: []string{"junk"}}, begin, Applied{Operations: 1}, nil) // an invalid trace context
	record(ctx, changes{services: one, causes: []string{first, second, first}}, begin, Applied{Services: 1, Operations: 3}, nil)
	record(ctx, changes{services: one, causes: []string{second}}, begin, Applied{}, errors.New("refused"))
	got := spans.Ended()
	if len(got) != 2 {
		t.Fatalf("%d spans, want 2", len(got))
	}
	a, b := got[0], got[1]
	if a.SpanContext().TraceID().String() != "0af7651916cd43dd8448eb211c80319c" || a.Parent().SpanID().String() != "b7ad6b7169203331" ||
		len(a.Links()) != 1 || !a.StartTime().Equal(begin) {
		t.Errorf("span: %+v, links %v", a.SpanContext(), a.Links())
	}
	if b.Status().Description != "refused" {
		t.Errorf("status: %+v", b.Status())
	}
}

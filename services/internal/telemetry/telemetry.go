// Package telemetry records one trace for everything that a write causes: it sets up the
// OpenTelemetry SDK, converts W3C trace contexts, and adds trace ids to log records.
//
// A span is recorded if its parent is, or if it is an explicit root (see [WithRoot]); other
// spans cost next to nothing. Package telemetry must never block the work that it records:
// the queue of spans is bounded, and spans that do not fit are dropped. It must never trace
// its own exports.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	sdkresource "go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
)

// Config configures the recording of a process.
type Config struct {
	// Service and Instance name the process: "scheduler", "scheduler-0".
	Service, Instance string
	// Conn is the connection to the apiservers over which spans are exported. Shutdown does
	// not close it.
	Conn *grpc.ClientConn
	// Exporter, if set, is used instead of Conn: in the apiserver and in tests.
	Exporter sdktrace.SpanExporter
	// RootsPerSecond bounds the explicit roots recorded per second; 0 means 200.
	RootsPerSecond int
	// Queue bounds the finished spans that wait for export; 0 means 8192.
	Queue int
	// Delay is how long a finished span waits for others to be exported with; 0 means
	// 500 ms.
	Delay time.Duration
}

// ExportMethod is the RPC that exports spans. It is never traced.
const ExportMethod = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

// Telemetry records the spans of a process.
type Telemetry struct {
	provider *sdktrace.TracerProvider
}

// Start sets the process's tracer provider and propagator. With neither Conn nor Exporter,
// trace contexts are propagated, and spans are recorded but not exported.
func Start(ctx context.Context, cfg Config) (*Telemetry, error) {
	exporter := cfg.Exporter
	if exporter == nil && cfg.Conn != nil {
		var err error
		exporter, err = otlptracegrpc.New(ctx,
			otlptracegrpc.WithGRPCConn(cfg.Conn),
			otlptracegrpc.WithTimeout(5*time.Second),
			otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{
				Enabled: true, InitialInterval: 200 * time.Millisecond, MaxInterval: 2 * time.Second, MaxElapsedTime: 10 * time.Second,
			}))
		if err != nil {
			return nil, fmt.Errorf("trace exporter: %w", err)
		}
	}
	options := []sdktrace.TracerProviderOption{
		sdktrace.WithResource(sdkresource.NewSchemaless(
			attribute.String("service.name", cfg.Service),
			attribute.String("service.instance.id", cfg.Instance),
		)),
		sdktrace.WithSampler(newSampler(orElse(cfg.RootsPerSecond, 200))),
		sdktrace.WithRawSpanLimits(sdktrace.SpanLimits{
			AttributeValueLengthLimit: 1024, AttributeCountLimit: 32,
			EventCountLimit: 32, LinkCountLimit: 32,
			AttributePerEventCountLimit: 16, AttributePerLinkCountLimit: 4,
		}),
	}
	if exporter != nil {
		options = append(options, sdktrace.WithBatcher(exporter,
			sdktrace.WithMaxQueueSize(orElse(cfg.Queue, 8192)),
			sdktrace.WithMaxExportBatchSize(512),
			sdktrace.WithBatchTimeout(orElse(cfg.Delay, 500*time.Millisecond)),
			sdktrace.WithExportTimeout(10*time.Second)))
	}
	provider := sdktrace.NewTracerProvider(options...)
	otel.SetErrorHandler(new(errorLog))
	otel.SetTextMapPropagator(propagation.TraceContext{})
	otel.SetTracerProvider(provider)
	return &Telemetry{provider: provider}, nil
}

// Provider returns the tracer provider, for callers that do not use the process's global one.
func (t *Telemetry) Provider() *sdktrace.TracerProvider { return t.provider }

// Flush exports the spans that have ended so far.
func (t *Telemetry) Flush(ctx context.Context) error { return t.provider.ForceFlush(ctx) }

// Shutdown exports the remaining spans, as many as it can before ctx ends, and ends the
// recording. Spans that were not exported in time are not an error.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	err := t.provider.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil // these spans are lost, as with a full queue
	}
	return err
}

func orElse[T comparable](v, other T) T {
	var zero T
	if v == zero {
		return other
	}
	return v
}

// errorLog logs failed exports, at most one in 30 s: while no apiserver answers, every batch
// fails.
type errorLog struct{ last atomic.Int64 }

// Handle implements otel.ErrorHandler.
func (l *errorLog) Handle(err error) {
	now := time.Now().UnixNano()
	last := l.last.Load()
	if now-last < int64(30*time.Second) || !l.last.CompareAndSwap(last, now) {
		return
	}
	slog.WarnContext(context.Background(), "spans were not exported", "error", err)
}

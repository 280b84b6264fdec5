// Package telemetry records one trace for everything that happens to an object:
// it sets up the SDK, carries W3C trace contexts in and out, and adds trace ids to
// log lines.
//
// A span is recorded when its parent is, or when it is an explicit root (see
// [WithRoot]); everything else costs next to nothing. It must never hold up the
// work that it records: the queue of spans is bounded, and what does not fit is
// dropped and counted. It must never trace its own exports.
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

// Config says who records and where to.
type Config struct {
	// Service and Instance name the process: "scheduler", "scheduler-0".
	Service, Instance string
	// Conn is a connection to the apiservers, which spans are exported over. It
	// is not closed.
	Conn *grpc.ClientConn
	// Exporter is used instead of Conn where spans need no connection (the
	// apiserver itself, tests).
	Exporter sdktrace.SpanExporter
	// RootsPerSecond bounds how many explicit roots are recorded; 0 means 200.
	RootsPerSecond int
	// Queue is the largest number of finished spans that wait for export; 0
	// means 8192.
	Queue int
	// Delay is how long a finished span waits for others; 0 means 500 ms.
	Delay time.Duration
}

// ExportMethod is the RPC that spans are exported by; it is never traced.
const ExportMethod = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"

// Telemetry is the recording of a process.
type Telemetry struct {
	provider *sdktrace.TracerProvider
}

// Start sets up the process' tracer provider and propagator. With neither Conn
// nor Exporter, trace contexts are carried on but nothing is recorded.
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

// Provider is the tracer provider, for those who do not want the process' global
// one.
func (t *Telemetry) Provider() *sdktrace.TracerProvider { return t.provider }

// Flush exports what has been recorded so far.
func (t *Telemetry) Flush(ctx context.Context) error { return t.provider.ForceFlush(ctx) }

// Shutdown exports what is left and ends the recording.
func (t *Telemetry) Shutdown(ctx context.Context) error {
	err := t.provider.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil // what could not be exported in time is lost, as it is with a full queue
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

// errorLog logs failures of the export, at most one every half minute: they come
// with each batch while no apiserver is up.
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

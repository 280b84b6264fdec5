package tracestore

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const (
	// forwardQueue is how many exports wait for a slow collector; what comes on
	// top of it is dropped and counted.
	forwardQueue   = 256
	forwardTimeout = 10 * time.Second
	forwardRetries = 3
	drainTimeout   = 2 * time.Second
)

// Forward sends spans on to an OTLP collector. A nil Forward sends nothing.
type Forward struct {
	conn    *grpc.ClientConn
	queue   chan []*tracepb.ResourceSpans
	dropped atomic.Int64
}

// NewForward sends to the collector at endpoint (host:port, without TLS, as a
// collector on the same host or in the same network listens); empty is nil.
func NewForward(endpoint string, options ...grpc.DialOption) (*Forward, error) {
	if endpoint == "" {
		return nil, nil
	}
	conn, err := grpc.NewClient(endpoint, append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, options...)...)
	if err != nil {
		return nil, fmt.Errorf("--otlp-endpoint: %w", err)
	}
	return &Forward{conn: conn, queue: make(chan []*tracepb.ResourceSpans, forwardQueue)}, nil
}

// Send queues spans; it never waits.
func (f *Forward) Send(spans []*tracepb.ResourceSpans) {
	if f == nil || len(spans) == 0 {
		return
	}
	select {
	case f.queue <- spans:
	default:
		if n := f.dropped.Add(1); n&(n-1) == 0 { // at 1, 2, 4, 8…
			slog.Warn("spans are not forwarded: the collector is too slow", "exports_dropped", n)
		}
	}
}

// Dropped is how many exports did not fit into the queue.
func (f *Forward) Dropped() int64 { return f.dropped.Load() }

// Run sends what is queued until ctx ends, then what is left if that goes quickly,
// and closes the connection.
func (f *Forward) Run(ctx context.Context) error {
	if f == nil {
		return nil
	}
	defer f.conn.Close()
	collector := collectorpb.NewTraceServiceClient(f.conn)
	for {
		select {
		case spans := <-f.queue:
			if err := send(ctx, collector, spans); err != nil && ctx.Err() == nil {
				slog.Warn("spans were not forwarded", "error", err)
			}
		case <-ctx.Done():
			f.drain(context.WithoutCancel(ctx), collector)
			return nil
		}
	}
}

// drain sends what is left, as long as the collector takes it.
func (f *Forward) drain(ctx context.Context, collector collectorpb.TraceServiceClient) {
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	for {
		select {
		case spans := <-f.queue:
			if sendOnce(ctx, collector, spans) != nil {
				return
			}
		default:
			return
		}
	}
}

// send tries a few times where trying again can help.
func send(ctx context.Context, c collectorpb.TraceServiceClient, spans []*tracepb.ResourceSpans) (err error) {
	wait := 200 * time.Millisecond
	for range forwardRetries {
		if err = sendOnce(ctx, c, spans); err == nil || !passing(status.Code(err)) {
			return err
		}
		select {
		case <-time.After(wait):
			wait *= 4
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return err
}

func sendOnce(ctx context.Context, c collectorpb.TraceServiceClient, spans []*tracepb.ResourceSpans) error {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	_, err := c.Export(ctx, &collectorpb.ExportTraceServiceRequest{ResourceSpans: spans})
	return err
}

// passing are the codes that the OTLP specification wants repeated.
func passing(c codes.Code) bool {
	switch c {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.Canceled:
		return true
	}
	return false
}

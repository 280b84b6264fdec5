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
	"google.golang.org/protobuf/proto"
)

const (
	// forwardQueue is how many exports wait for a slow collector, forwardBytes how
	// large they are together as sent, the one that is being sent included; what comes
	// on top is dropped and counted.
	forwardQueue   = 256
	forwardBytes   = 16 << 20
	forwardTimeout = 10 * time.Second
	forwardRetries = 3
	drainTimeout   = 2 * time.Second
)

// Forward sends spans on to an OTLP collector. A nil Forward sends nothing.
type Forward struct {
	conn    *grpc.ClientConn
	queue   chan export
	bytes   atomic.Int64 // of what waits
	dropped atomic.Int64
}

// export is what came in one call.
type export struct {
	spans []*tracepb.ResourceSpans
	size  int64
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
	return &Forward{conn: conn, queue: make(chan export, forwardQueue)}, nil
}

// Send queues spans; it never waits.
func (f *Forward) Send(spans []*tracepb.ResourceSpans) {
	if f == nil || len(spans) == 0 {
		return
	}
	e := export{spans, size(spans)}
	if f.bytes.Add(e.size) <= forwardBytes {
		select {
		case f.queue <- e:
			return
		default:
		}
	}
	f.bytes.Add(-e.size)
	if n := f.dropped.Add(1); n&(n-1) == 0 { // at 1, 2, 4, 8…
		slog.Warn("spans are not forwarded: the collector is too slow", "exports_dropped", n, "bytes_waiting", f.bytes.Load())
	}
}

// size is what spans take on the wire.
func size(spans []*tracepb.ResourceSpans) (n int64) {
	for _, r := range spans {
		n += int64(proto.Size(r))
	}
	return n
}

// Dropped is how many exports did not fit into the queue's bounds.
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
		case e := <-f.queue:
			err := send(ctx, collector, e.spans)
			f.bytes.Add(-e.size)
			if err != nil && ctx.Err() == nil {
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
		case e := <-f.queue:
			f.bytes.Add(-e.size)
			if sendOnce(ctx, collector, e.spans) != nil {
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

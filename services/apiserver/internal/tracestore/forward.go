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
	// forwardQueue is how many exports may wait for a slow collector, and forwardBytes how
	// large they may be together on the wire, including the one being sent. Exports beyond that
	// are dropped and counted.
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
	bytes   atomic.Int64 // size of the exports that wait or are being sent
	dropped atomic.Int64
}

// export is the spans of one call of Send.
type export struct {
	spans []*tracepb.ResourceSpans
	size  int64
}

// NewForward returns a Forward to the collector at endpoint (host:port, without TLS, as a
// collector on the same host or network usually listens), or nil if endpoint is empty.
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

// Send queues spans. It does not block.
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
	if n := f.dropped.Add(1); n&(n-1) == 0 { // log the 1st, 2nd, 4th, 8th…
		slog.WarnContext(context.Background(), "dropping spans: the collector is too slow", "exports_dropped", n, "bytes_waiting", f.bytes.Load())
	}
}

// size returns the size of spans on the wire, in bytes.
func size(spans []*tracepb.ResourceSpans) (n int64) {
	for _, r := range spans {
		n += int64(proto.Size(r))
	}
	return n
}

// Dropped returns how many exports were dropped because the queue was full.
func (f *Forward) Dropped() int64 { return f.dropped.Load() }

// Run sends queued spans until ctx ends, then what is left for at most drainTimeout, and closes
// the connection. It returns nil.
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
				slog.WarnContext(ctx, "cannot forward spans to the collector", "error", err)
			}
		case <-ctx.Done():
			f.drain(context.WithoutCancel(ctx), collector)
			return nil
		}
	}
}

// drain sends the exports that are still queued, until one fails or drainTimeout has passed.
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

// send sends an export, up to forwardRetries times as long as the error is temporary.
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

// passing reports whether the OTLP specification makes c retryable.
func passing(c codes.Code) bool {
	switch c {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted, codes.Canceled:
		return true
	}
	return false
}

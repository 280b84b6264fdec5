package rpc

import (
	"strings"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	noopmetric "go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"keelson.dev/services/internal/telemetry"
)

// traced reports whether calls of a method get a span. Exports of spans must not make
// spans, and health checks and reflection are of no interest.
func traced(method string) bool {
	return method != telemetry.ExportMethod &&
		!strings.HasPrefix(method, healthService) &&
		!strings.HasPrefix(method, "/grpc.reflection.")
}

// serverTracing makes the spans of calls after authentication: only authenticated callers
// may begin a trace or add to one.
type serverTracing struct {
	handler stats.Handler
	root    func(method string) bool
}

func newServerTracing(cfg ServerConfig) *serverTracing {
	return &serverTracing{
		root: cfg.Root,
		handler: otelgrpc.NewServerHandler(
			otelgrpc.WithMeterProvider(noopmetric.NewMeterProvider()),
			otelgrpc.WithFilter(func(info *stats.RPCTagInfo) bool {
				return traced(info.FullMethodName) && (cfg.Untraced == nil || !cfg.Untraced(info.FullMethodName))
			}),
		),
	}
}

// trace runs the handler of a call in its span, if it has one.
func (t *serverTracing) trace(c *call, srv any, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if c.caller.Class == Stranger {
		return handler(srv, c)
	}
	if len(metadata.ValueFromIncomingContext(c.ctx, "traceparent")) == 0 {
		if t.root == nil || !t.root(info.FullMethod) {
			return handler(srv, c)
		}
		c.ctx = telemetry.WithRoot(c.ctx)
	}
	c.ctx = t.handler.TagRPC(c.ctx, &stats.RPCTagInfo{FullMethodName: info.FullMethod})
	ctx := c.ctx
	if !trace.SpanFromContext(ctx).IsRecording() {
		return handler(srv, c)
	}
	begin := time.Now()
	err := handler(srv, c)
	end := &stats.End{BeginTime: begin, EndTime: time.Now()}
	if err != nil {
		end.Error = spanError(err)
	}
	t.handler.HandleRPC(ctx, end)
	return err
}

// spanError returns a handler's error as the client receives it.
func spanError(err error) error {
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.FromContextError(err).Err()
}

package rpc

import (
	"context"
	"strings"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"

	"keelson.dev/services/internal/telemetry"
)

// traced tells the calls that get a span. Exporting spans must not make spans,
// and a probe or a question about the server is nobody's work.
func traced(method string) bool {
	return method != telemetry.ExportMethod &&
		!strings.HasPrefix(method, "/grpc.health.") &&
		!strings.HasPrefix(method, "/grpc.reflection.")
}

// rootTracing lets chosen methods begin a trace.
type rootTracing struct {
	stats.Handler
	root func(method string) bool
}

// TagRPC implements stats.Handler.
func (r *rootTracing) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	if r.root(info.FullMethodName) && len(metadata.ValueFromIncomingContext(ctx, "traceparent")) == 0 {
		ctx = telemetry.WithRoot(ctx)
	}
	return r.Handler.TagRPC(ctx, info)
}

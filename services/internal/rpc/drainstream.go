package rpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// drainStreams ends endless streams when drain does. A stream on which only the server
// sends, such as a watch, ends without an error: its client continues elsewhere after the
// last message. A bidirectional one, or one whose handler returns that itself because its end
// means something, ends with codes.Unavailable.
func drainStreams(drain context.Context, endless func(fullMethod string) bool) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		if !endless(info.FullMethod) {
			return handler(srv, stream)
		}
		ctx, cancel := context.WithCancel(stream.Context())
		defer cancel()
		stop := context.AfterFunc(drain, cancel)
		defer stop()
		err := handler(srv, &drained{ServerStream: stream, ctx: ctx})
		if drain.Err() == nil || stream.Context().Err() != nil {
			return err
		}
		if info.IsClientStream {
			return status.Error(codes.Unavailable, "the server is stopping")
		}
		if status.Code(err) == codes.Unavailable {
			return err
		}
		return nil
	}
}

type drained struct {
	grpc.ServerStream
	ctx context.Context
}

func (d *drained) Context() context.Context { return d.ctx }

package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// RecoverStream turns a panic into codes.Internal, and logs its stack.
func RecoverStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer recoverCall(stream.Context(), info.FullMethod, &err)
	return handler(srv, stream)
}

func recoverCall(ctx context.Context, method string, err *error) {
	if p := recover(); p != nil {
		slog.ErrorContext(ctx, "panic", "in", method, "value", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = status.Errorf(codes.Internal, "internal error in %s", method)
	}
}

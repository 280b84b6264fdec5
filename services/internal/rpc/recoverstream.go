package rpc

import "google.golang.org/grpc"

// RecoverStream turns a panic into codes.Internal, and logs its stack.
func RecoverStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	defer recoverCall(stream.Context(), info.FullMethod, &err)
	return handler(srv, stream)
}

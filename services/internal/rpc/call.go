package rpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"
)

// Carrier carries a call that did not arrive over gRPC's own transport, such as one of gRPC-Web. It
// is read by one goroutine at a time; WriteStatus may be called by another.
type Carrier interface {
	grpc.ServerTransportStream
	// ReadMessageHeader reads the compression flag and the length of the next message. The
	// error is io.EOF if there is none.
	ReadMessageHeader(header []byte) error
	// Read reads n bytes of a message. It allocates as they arrive.
	Read(n int) (mem.BufferSlice, error)
	// RecvCompress is the encoding of compressed messages.
	RecvCompress() string
	// WriteStatus ends the call with a status, and a ReadMessageHeader or Read in progress.
	WriteStatus(st *status.Status) error
	// Send sends a message, which it does not keep.
	Send(message mem.BufferSlice) error
}

var _ transport = (Carrier)(nil)

// method is a registered method.
type method struct {
	desc  grpc.StreamDesc
	impl  any
	unary bool // the handler runs the interceptors itself
}

// Has reports whether the server has a method, as /SERVICE/METHOD.
func (s *Server) Has(fullMethod string) bool {
	_, ok := s.methods[fullMethod]
	return ok
}

// Call serves a call of a carrier, with the same authentication, limits and interceptors as
// gRPC's own, and returns how it ended; nil is codes.OK. The context has the metadata and, as a peer, the
// connection. Clients that stream are refused.
func (s *Server) Call(ctx context.Context, c Carrier) error {
	ctx, err := s.guard.tap(ctx, &tap.Info{FullMethodName: c.Method()})
	if err != nil {
		return err
	}
	m, ok := s.methods[c.Method()]
	info := &grpc.StreamServerInfo{FullMethod: c.Method(), IsServerStream: true}
	switch {
	case !ok: // once the caller is authenticated
		m.desc.Handler, m.impl = unknownMethod, s
	case m.desc.ClientStreams:
		m.desc.Handler = func(any, grpc.ServerStream) error {
			return status.Errorf(codes.Unimplemented, "%s takes a stream of messages: call it over gRPC", c.Method())
		}
	}
	ctx = grpc.NewContextWithServerTransportStream(ctx, c)
	ss := &carried{ctx: ctx, carrier: c, guard: s.guard}
	if m.unary {
		return m.desc.Handler(m.impl, ss) // has its interceptors
	}
	return s.chain(m.impl, ss, info, m.desc.Handler)
}

// chainStream combines interceptors into one.
func chainStream(all []grpc.StreamServerInterceptor) grpc.StreamServerInterceptor {
	return func(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		for i := len(all) - 1; i >= 0; i-- {
			intercept, inner := all[i], handler
			handler = func(srv any, ss grpc.ServerStream) error { return intercept(srv, ss, info, inner) }
		}
		return handler(srv, ss)
	}
}

// carried is the stream of a carrier.
type carried struct {
	ctx     context.Context
	carrier Carrier
	guard   *guard
}

func (s *carried) Context() context.Context        { return s.ctx }
func (s *carried) SetHeader(md metadata.MD) error  { return s.carrier.SetHeader(md) }
func (s *carried) SendHeader(md metadata.MD) error { return s.carrier.SendHeader(md) }
func (s *carried) SetTrailer(md metadata.MD)       { _ = s.carrier.SetTrailer(md) }
func (s *carried) RecvMsg(any) error               { return status.Error(codes.Internal, "the guard reads messages") }

// SendMsg implements grpc.ServerStream.
func (s *carried) SendMsg(m any) error {
	data, err := s.guard.codec.Marshal(m)
	if err != nil {
		return status.Errorf(codes.Internal, "the message cannot be encoded: %v", err)
	}
	defer data.Free()
	if data.Len() > MaxMessage {
		return status.Errorf(codes.ResourceExhausted, "the answer has %d bytes: at most %d are sent", data.Len(), MaxMessage)
	}
	return s.carrier.Send(data)
}

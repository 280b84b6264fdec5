package rpc

import (
	"context"
	"net/netip"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"keelson.dev/services/internal/connlimit"
	"keelson.dev/services/internal/inflight"
)

// maxUnknown bounds the calls in flight on a connection of which no caller has been
// authenticated yet.
const maxUnknown = 256

// healthService needs no authentication.
const healthService = "/grpc.health.v1.Health/"

// guard admits calls: it authenticates the caller, and then reads messages within the
// caller's limits.
type guard struct {
	authenticate  Authenticate
	codec         encoding.CodecV2
	maxMessage    func(fullMethod string) int // may be nil
	budget        *budget
	strangers     *inflight.Gauge
	healthWatches *inflight.Shares[netip.Addr]
	tracing       *serverTracing
}

func newGuard(cfg ServerConfig, codec encoding.CodecV2) *guard {
	return &guard{
		authenticate: cfg.Authenticate, codec: codec, maxMessage: cfg.MaxMessage, budget: newBudget(maxBytes), tracing: newServerTracing(cfg),
		strangers: inflight.NewGauge(maxStrangers), healthWatches: inflight.NewShares[netip.Addr](maxStrangers),
	}
}

// call is a call as its handler sees it.
type call struct {
	grpc.ServerStream
	ctx       context.Context
	guard     *guard
	caller    Caller
	limits    *limits
	message   int // bytes of one message, as sent and inflated
	codec     encoding.CodecV2
	transport transport
	once      bool // the client sends one message
	received  bool

	mu       sync.Mutex // of what follows
	reserved int64
	ended    bool
}

// Context implements grpc.ServerStream.
func (c *call) Context() context.Context { return c.ctx }

// RecvMsg implements grpc.ServerStream.
func (c *call) RecvMsg(m any) error { return c.receive(m) }

// tap refuses calls on an unauthenticated connection with too many in flight. It runs in
// the connection's reader and must not block.
func (g *guard) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	conn := connection(ctx)
	if conn == nil || conn.Known() {
		return ctx, nil
	}
	if err := ctx.Err(); err != nil {
		return ctx, status.FromContextError(err).Err()
	}
	if strings.Count(info.FullMethodName, "/") < 2 {
		conn.Refused()
		return ctx, status.Errorf(codes.Unimplemented, "malformed method name %q", info.FullMethodName)
	}
	if conn.Calls.Add(1) > maxUnknown {
		conn.Calls.Add(-1)
		conn.Refused()
		return ctx, status.Errorf(codes.ResourceExhausted, "more than %d calls on a connection that is not authenticated", maxUnknown)
	}
	return ctx, nil
}

// admit authenticates a call before its handler reads a message.
func (g *guard) admit(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx := ss.Context()
	conn := connection(ctx)
	unknown := conn != nil && !conn.Known()
	if unknown {
		defer conn.Calls.Add(-1)
	}
	c := &call{ServerStream: ss, ctx: ctx, guard: g, codec: g.codec, once: !info.IsClientStream}
	var ok bool
	if c.transport, ok = grpc.ServerTransportStreamFromContext(ctx).(transport); !ok {
		return status.Error(codes.Internal, "messages cannot be read within bounds from this transport")
	}
	c.caller = Caller{Class: System}
	if g.authenticate != nil {
		var err error
		if c.ctx, c.caller, err = g.authenticate(ctx, info.FullMethod); err != nil {
			if unknown {
				conn.Refused()
			}
			return err
		}
	}
	c.limits = &classLimits[c.caller.Class]
	c.message = c.limits.message
	if g.maxMessage != nil {
		if n := g.maxMessage(info.FullMethod); n > 0 {
			c.message = min(c.message, n)
		}
	}
	if c.caller.Class == Stranger {
		if conn != nil && !conn.Allow() {
			conn.Refused()
			return status.Error(codes.ResourceExhausted, "too many calls of an unauthenticated client, please try again later")
		}
		if strings.HasPrefix(info.FullMethod, healthService) && info.IsServerStream {
			// Such a watch may last for ever, so clients share the places.
			ctx, evict := context.WithCancelCause(c.ctx)
			defer evict(nil)
			leave, ok := g.healthWatches.Enter(clientAddress(ctx), func() { evict(errStrangers) })
			if !ok {
				return errStrangers
			}
			defer leave()
			c.ctx = ctx
			inner := handler
			handler = func(srv any, ss grpc.ServerStream) error {
				err := inner(srv, ss)
				if context.Cause(ctx) == errStrangers { //nolint:errorlint // it is the cause itself
					return errStrangers
				}
				return err
			}
		} else if !g.strangers.Enter(1) {
			return errStrangers
		} else {
			defer g.strangers.Leave(1)
		}
		// grpc-encoding alone does not mean that messages are compressed, but clients send it
		// only if they are.
		if e := c.transport.RecvCompress(); e != "" && e != encoding.Identity {
			return errCompressed
		}
	} else if unknown {
		conn.Know()
	}
	if conn != nil {
		defer conn.Streams.Add(-1)
		if conn.Streams.Add(1) > c.limits.streams {
			return errStreams(c.limits.streams)
		}
	}
	if info.IsClientStream {
		c.ctx = context.WithValue(c.ctx, callKey{}, c)
	}
	defer c.end()
	return g.tracing.trace(c, srv, info, handler)
}

// callKey is the key of a *call in the context of a stream from its client.
type callKey struct{}

// Occupy counts one more call in flight on the connection of a stream from its client, for
// something that the stream does in place of a call, until leave is called. It fails with
// RESOURCE_EXHAUSTED if the connection has as many as its caller may have.
func Occupy(ctx context.Context) (leave func(), err error) {
	c, ok := ctx.Value(callKey{}).(*call)
	conn := connection(ctx)
	if !ok || conn == nil {
		return func() {}, nil // the listener has no limits
	}
	if conn.Streams.Add(1) > c.limits.streams {
		conn.Streams.Add(-1)
		return nil, errStreams(c.limits.streams)
	}
	return func() { conn.Streams.Add(-1) }, nil
}

func errStreams(limit int32) error {
	return status.Errorf(codes.ResourceExhausted, "more than %d calls in flight on one connection", limit)
}

// errStrangers refuses a call beyond what the server serves to unauthenticated clients.
var errStrangers = status.Error(codes.ResourceExhausted, "too many calls of unauthenticated clients, please try again later")

// clientAddress returns the address by which the client of a call is counted. It is zero if the
// client has none.
func clientAddress(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok || p.Addr == nil {
		return netip.Addr{}
	}
	return connlimit.ClientAddress(p.Addr)
}

// connection returns the connection of a call, or nil if its listener has no limits.
func connection(ctx context.Context) *connlimit.Conn {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	return connlimit.Of(p.LocalAddr)
}

// RegisterService implements grpc.ServiceRegistrar. Services must be registered here, not at
// the embedded server. Unary methods are served as streams: gRPC reads the message of a
// unary method before any interceptor runs, and that of a stream when its handler does. On
// the wire they are the same.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, impl any) {
	streams := *desc
	streams.Methods = nil
	streams.Streams = append([]grpc.StreamDesc(nil), desc.Streams...)
	for i := range streams.Streams {
		name := "/" + desc.ServiceName + "/" + streams.Streams[i].StreamName
		s.methods[name] = method{desc: streams.Streams[i], impl: impl}
	}
	for _, m := range desc.Methods {
		name := "/" + desc.ServiceName + "/" + m.MethodName
		stream := s.unaryStream(name, m)
		s.methods[name] = method{desc: stream, impl: impl, unary: true}
		streams.Streams = append(streams.Streams, stream)
	}
	s.Server.RegisterService(&streams, impl)
}

func (s *Server) unaryStream(fullMethod string, m grpc.MethodDesc) grpc.StreamDesc {
	info := &grpc.StreamServerInfo{FullMethod: fullMethod}
	handler := func(srv any, ss grpc.ServerStream) error {
		reply, err := m.Handler(srv, ss.Context(), ss.RecvMsg, s.unary)
		if err != nil {
			return err
		}
		return ss.SendMsg(reply)
	}
	admit := func(srv any, ss grpc.ServerStream) error { return s.guard.admit(srv, ss, info, handler) }
	return grpc.StreamDesc{
		StreamName: m.MethodName,
		// gRPC calls no stream interceptor for unary methods.
		Handler: func(srv any, ss grpc.ServerStream) error { return RecoverStream(srv, ss, info, admit) },
	}
}

// chainUnary combines interceptors into one; nil if there are none.
func chainUnary(all []grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	if len(all) == 0 {
		return nil
	}
	first, rest := all[0], chainUnary(all[1:])
	if rest == nil {
		return first
	}
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		return first(ctx, req, info, func(ctx context.Context, req any) (any, error) { return rest(ctx, req, info, next) })
	}
}

// Package rpc configures the gRPC servers and connections of all services: mutual TLS,
// tracing, keep-alive, bounded messages, recovery from panics, health, and balancing over
// all apiservers.
//
// It must never retry an RPC whose repetition could have another effect than the first
// attempt, and never let one call end the process.
package rpc

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	grpcproto "google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"keelson.dev/services/internal/identity"
)

// MaxMessage is the largest message in either direction, in bytes. Pages of lists are much
// smaller, and one object has at most 3 MiB.
const MaxMessage = 16 << 20

const (
	// maxStreams bounds the streams of one connection. Simulated nodes share a connection
	// and watch half a dozen collections each; other callers have less, see classLimits.
	maxStreams = 16384
	// maxHeader bounds the metadata of a call: a token and a user to impersonate with
	// its groups.
	maxHeader = 32 << 10
	// window is how many bytes a stream may send before its handler reads: the least that
	// gRPC allows. It grows for a message that a handler waits for. A fixed window also
	// turns off the estimation that lets a connection buffer up to 16 MiB.
	window     = 64 << 10
	connWindow = 1 << 20
	// keepaliveTime is how long a peer may be silent before it is pinged, and
	// keepaliveTimeout how long it may take to answer: together they bound how long a cut
	// cable goes unnoticed.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	handshakeTimeout = 5 * time.Second
	// stopTimeout is how long calls may still run once the server stops.
	stopTimeout = 8 * time.Second
)

// ServerConfig configures a Server.
type ServerConfig struct {
	// Identity is the server's certificate; nil serves without TLS (in-memory
	// connections of tests).
	Identity *identity.Source
	// RequireClientCert is true if clients without a certificate of the cluster's CA are
	// disconnected. If it is false, certificates are requested but not verified:
	// Authenticate must verify them.
	RequireClientCert bool
	// Authenticate determines the caller before a message is read. If it is nil, every
	// caller counts as one of the cluster's own components: for servers of peers with
	// RequireClientCert, and for in-memory connections of tests.
	Authenticate Authenticate
	// Codec replaces protobuf's.
	Codec encoding.CodecV2
	// Unary and Stream are interceptors, which run in order after authentication. Those of
	// unary methods run once the message has been decoded.
	Unary  []grpc.UnaryServerInterceptor
	Stream []grpc.StreamServerInterceptor
	// Root reports whether a method (a write) begins a trace if its caller sent none.
	Root func(fullMethod string) bool
	// Untraced reports whether a method gets no span, such as streams that live as long as
	// the connection.
	Untraced func(fullMethod string) bool
	// Endless reports whether a stream is ended by its client only, such as watches and
	// tunnels. They end at once when the server stops; see drainStreams for how.
	Endless func(fullMethod string) bool
	// MaxMessage returns the size in bytes of the largest message of a method, or 0 if only
	// the caller's class bounds it.
	MaxMessage func(fullMethod string) int
	// Reflection is true if the descriptions of the services are served, to any client
	// that may connect.
	Reflection bool
	// Options are added last, and take precedence.
	Options []grpc.ServerOption
}

// Server is a gRPC server with a health service.
type Server struct {
	*grpc.Server
	// Health reports SERVING from the start; Serve sets NOT_SERVING when it ends.
	Health *health.Server
	drain  context.CancelFunc
	guard  *guard
	// unary are the interceptors of unary methods, and chain those of streams.
	unary grpc.UnaryServerInterceptor
	chain grpc.StreamServerInterceptor
	// methods are those of all services, by /SERVICE/METHOD. They are registered before the
	// server serves.
	methods map[string]method
}

// NewServer returns a server; register services with its RegisterService.
func NewServer(cfg ServerConfig) *Server {
	creds := insecure.NewCredentials()
	if cfg.Identity != nil {
		creds = cfg.Identity.ServerCredentials(cfg.RequireClientCert)
	}
	codec := cfg.Codec
	if codec == nil {
		codec = encoding.GetCodecV2(grpcproto.Name)
	}
	drain, begin := context.WithCancel(context.Background())
	g := newGuard(cfg, codec)
	stream := append([]grpc.StreamServerInterceptor{RecoverStream, g.admit}, cfg.Stream...)
	if cfg.Endless != nil {
		stream = append(stream, drainStreams(drain, cfg.Endless))
	}
	options := append([]grpc.ServerOption{
		grpc.Creds(creds),
		grpc.ForceServerCodecV2(codec),
		grpc.InTapHandle(g.tap),
		grpc.ChainStreamInterceptor(stream...),
		grpc.UnknownServiceHandler(unknownMethod),
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.StaticStreamWindowSize(window),
		grpc.StaticConnWindowSize(connWindow),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
	}, cfg.Options...)
	s := &Server{
		Server: grpc.NewServer(options...), Health: health.NewServer(), drain: begin,
		guard: g, unary: chainUnary(cfg.Unary), chain: chainStream(stream), methods: map[string]method{},
	}
	healthv1.RegisterHealthServer(s, s.Health)
	if cfg.Reflection {
		reflection.Register(s)
	}
	return s
}

// Serve serves on l until ctx ends. Then it sends GOAWAY, ends endless streams, and gives
// the other calls that run 8 s.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		s.Health.Shutdown()
		s.drain()
		force := time.AfterFunc(stopTimeout, s.Stop)
		defer force.Stop()
		s.GracefulStop()
	})
	err := s.Server.Serve(l)
	defer s.drain()
	if !stop() {
		<-done
		return nil
	}
	s.Stop()
	if err != nil {
		return fmt.Errorf("grpc listener: %w", err)
	}
	return nil
}

// Also serves on another listener until ctx ends. Serve must run as well: it ends the calls
// of both listeners.
func (s *Server) Also(ctx context.Context, l net.Listener) error {
	err := s.Server.Serve(l)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("grpc listener: %w", err)
}

// unknownMethod answers calls of unknown methods, once the caller is authenticated.
func unknownMethod(_ any, ss grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(ss)
	return status.Errorf(codes.Unimplemented, "unknown method %s", method)
}

// Package rpc is gRPC as every service serves and dials it: mutual TLS, tracing,
// keep-alive, bounded messages, recovery from panics, health, and balancing over
// all apiservers.
//
// It must never retry an RPC whose repetition could do something else than the
// first attempt, and never let one call end the process.
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

// MaxMessage is the largest message in either direction: a page of a list is cut
// long before, and one object is at most 3 MiB.
const MaxMessage = 16 << 20

const (
	// maxStreams bounds what one connection may have open: simulated nodes share
	// a connection and watch half a dozen collections each. Others have less; see
	// classLimits.
	maxStreams = 16384
	// maxHeader bounds the metadata of a call: a token and a user to impersonate with
	// its groups.
	maxHeader = 32 << 10
	// window is what a stream may send before its handler reads: the least that gRPC
	// allows. It grows for a message that a handler waits for. A fixed window also
	// turns off the estimation that lets a connection have up to 16 MiB.
	window     = 64 << 10
	connWindow = 1 << 20
	// keepaliveTime is how long a peer may be silent before it is pinged, and
	// keepaliveTimeout how long it may take to answer: together they bound how long a cut
	// cable goes unnoticed.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	handshakeTimeout = 5 * time.Second
	// stopTimeout is how long the calls that run when the server stops may go on.
	stopTimeout = 8 * time.Second
)

// ServerConfig says how to serve.
type ServerConfig struct {
	// Identity is the server's certificate; nil serves without TLS (in-memory
	// connections of tests).
	Identity *identity.Source
	// RequireClientCert cuts off clients without a certificate of the cluster's
	// CA. Where it is false, certificates are shown but not verified: an
	// interceptor must.
	RequireClientCert bool
	// Authenticate determines the caller before a message is read. Nil takes every
	// caller as one of the cluster's own: for servers that RequireClientCert of peers,
	// and in-memory connections of tests.
	Authenticate Authenticate
	// Codec replaces protobuf's.
	Codec encoding.CodecV2
	// Unary and Stream interceptors run after authentication, in order. Those of unary
	// methods run when the message is decoded.
	Unary  []grpc.UnaryServerInterceptor
	Stream []grpc.StreamServerInterceptor
	// Root tells the methods that begin a trace when the caller brought none
	// (writes).
	Root func(fullMethod string) bool
	// Untraced tells further methods that get no span: streams that live as long
	// as the connection.
	Untraced func(fullMethod string) bool
	// Endless tells the streams that nobody ends but the client: watches, tunnels.
	// They end at once when the server stops; see drainStreams for how.
	Endless func(fullMethod string) bool
	// Reflection serves what the server's services are, to anyone who may
	// connect.
	Reflection bool
	// Options are added last, and win.
	Options []grpc.ServerOption
}

// Server is a gRPC server with a health service.
type Server struct {
	*grpc.Server
	// Health is SERVING from the start; Serve sets NOT_SERVING when it ends.
	Health *health.Server
	drain  context.CancelFunc
	guard  *guard
	// unary are the interceptors of unary methods.
	unary grpc.UnaryServerInterceptor
}

// NewServer makes a server.
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
		guard: g, unary: chainUnary(cfg.Unary),
	}
	healthv1.RegisterHealthServer(s, s.Health)
	if cfg.Reflection {
		reflection.Register(s)
	}
	return s
}

// Serve serves on l until ctx ends. Then clients are told to go elsewhere, endless
// streams end, and the other calls that run are given a few seconds.
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

// Also serves on another listener until ctx ends; Serve, which must run as well, ends
// its calls.
func (s *Server) Also(ctx context.Context, l net.Listener) error {
	err := s.Server.Serve(l)
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("grpc listener: %w", err)
}

// unknownMethod answers what no service has, once the caller is known.
func unknownMethod(_ any, ss grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(ss)
	return status.Errorf(codes.Unimplemented, "unknown method %s", method)
}

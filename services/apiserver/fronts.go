package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"

	coordinationv1 "keelson.dev/proto/keelson/coordination/v1"
	nodev1 "keelson.dev/proto/keelson/node/v1"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/fence"
	grpcfront "keelson.dev/services/apiserver/internal/front/grpc"
	"keelson.dev/services/apiserver/internal/front/rest"
	"keelson.dev/services/apiserver/internal/front/sniff"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/snapshot"
	"keelson.dev/services/apiserver/internal/token"
	"keelson.dev/services/apiserver/internal/tunnel"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/ops"
	"keelson.dev/services/internal/rpc"
)

// fronts is what the two fronts are made of.
type fronts struct {
	cfg         *config
	id          *identity.Source
	api         pipeline.API
	users       *users
	rights      *authz.Authorizers
	fences      *fence.Fences
	spans       *spans
	status      *ops.Server
	ready       <-chan struct{}
	stopping    context.Context // ended by the signal
	checks      []rest.Check    // of the stores
	nodes       func() int      // how many there are
	grpc, https net.Listener
	members     *members
	tunnels     *tunnel.Server
	snapshots   *snapshot.Service
}

// startFronts serves both fronts once the apiserver is ready.
func startFronts(g *boot.Group, f fronts) {
	g.Go("heartbeat interval", func(ctx context.Context) error { return setHeartbeats(ctx, f.nodes, f.tunnels) })
	server := rpc.NewServer(rpc.ServerConfig{
		Identity:     f.id,
		Authenticate: grpcfront.Authentication(f.users, f.rights),
		Codec:        grpcfront.NewCodec(),
		Root:         grpcfront.Writes,
		Untraced:     grpcfront.Streams,
		Endless:      grpcfront.Endless,
		Options: []grpc.ServerOption{
			grpc.Creds(sniff.Credentials{TransportCredentials: f.id.ServerCredentials(false)}),
		},
	})
	resourcev1.RegisterResourceServiceServer(server, grpcfront.New(f.api))
	coordinationv1.RegisterFenceServiceServer(server, grpcfront.NewFenceService(f.fences))
	nodev1.RegisterTunnelServiceServer(server, f.tunnels)
	grpcfront.RegisterReflection(server)
	f.spans.serve(server, f.api, f.rights)
	f.members.serveAPI(g, server, f.rights)
	f.snapshots.Register(server)
	web := rest.New(rest.Config{
		API: f.api, Authn: f.users, Tunnel: f.tunnels,
		Registerer: f.status.Registry(),
		Metrics:    promhttp.HandlerFor(f.status.Registry(), promhttp.HandlerOpts{}),
		Checks: append([]rest.Check{
			{Name: "ping", Live: true, Run: func(context.Context) error { return nil }},
			{Name: "start", Run: ops.ReadyWhen(f.ready)},
			{Name: "shutdown", Run: notStopping(f.stopping)},
		}, f.checks...),
		OpenIDConfiguration: document(token.ConfigurationType, f.openIDConfiguration),
		JWKS:                document(token.KeySetType, f.users.issuer.KeySet),
	})
	g.Go("health", func(ctx context.Context) error { return tellHealth(ctx, f.stopping, server, f.status.CheckReady) })
	// Both stop together: a process is gone when its last client is.
	g.Go("fronts", func(ctx context.Context) error {
		if !closed(ctx, f.ready) {
			return errors.Join(f.grpc.Close(), f.https.Close())
		}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		// gRPC is served on the HTTPS port, too.
		shared := sniff.NewListener(f.https.Addr())
		results := make(chan error, 3)
		go func() { results <- server.Serve(ctx, f.grpc) }()
		go func() { results <- server.Also(ctx, shared) }()
		go func() {
			results <- rest.Serve(ctx, f.https, f.id.ServerTLS(false), web, slog.Default(), shared.Serve)
		}()
		first := <-results
		cancel()
		return errors.Join(first, <-results, <-results)
	})
}

// notStopping fails from the signal on: nothing new should be sent here.
func notStopping(stopping context.Context) ops.Check {
	return func(context.Context) error {
		if stopping.Err() != nil {
			return errors.New("it is stopping")
		}
		return nil
	}
}

// openIDConfiguration names the advertised address, as Kubernetes does: what a client
// puts into its Host header is only that client's word, and the document may be cached.
func (f *fronts) openIDConfiguration() ([]byte, error) {
	address, err := f.cfg.address(f.https.Addr())
	if err != nil {
		return nil, err
	}
	return f.users.issuer.Configuration("https://" + address.String())
}

// document serves a small JSON document.
func document(contentType string, make func() ([]byte, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		data, err := make()
		if err != nil {
			http.Error(w, fmt.Sprintf("cannot make the document: %v", err), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Cache-Control", "public, max-age=3600")
		_, _ = w.Write(data) // a client that went away
	})
}

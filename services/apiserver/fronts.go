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
	podv1 "keelson.dev/proto/keelson/pod/v1"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/fence"
	grpcfront "keelson.dev/services/apiserver/internal/front/grpc"
	"keelson.dev/services/apiserver/internal/front/grpcweb"
	"keelson.dev/services/apiserver/internal/front/rest"
	"keelson.dev/services/apiserver/internal/front/sniff"
	"keelson.dev/services/apiserver/internal/token"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/ops"
	"keelson.dev/services/internal/rpc"
)

// ports are the listeners of the two APIs.
type ports struct{ grpc, https net.Listener }

// openPorts listens, and does not accept connections yet.
func openPorts(g *boot.Group, cfg *config) (ports, error) {
	g.Go("addresses of balancers", cfg.Balancers.follow)
	grpc, err := cfg.listen("grpc", cfg.ListenGRPC)
	if err != nil {
		return ports{}, boot.Invalid("--listen-grpc: %w", err)
	}
	https, err := cfg.listen("https", cfg.ListenREST)
	if err != nil {
		return ports{}, boot.Invalid("--listen-https: %w", err)
	}
	return ports{grpc: grpc, https: https}, nil
}

// fronts is what the two fronts are made of.
type fronts struct {
	cfg    *config
	id     *identity.Source
	state  *state
	api    *api
	spans  *spans
	ports  ports
	health *health
}

// startFronts serves both fronts once the apiserver is ready.
func startFronts(g *boot.Group, f *fronts) {
	g.Go("heartbeat interval", func(ctx context.Context) error {
		return setHeartbeats(ctx, f.state.nodes.Len, f.state.tunnels)
	})
	server := f.newGRPC(g)
	web := f.newREST(server)
	g.Go("health", func(ctx context.Context) error {
		return updateHealth(ctx, f.health.stopping, server, f.health.status.CheckReady)
	})
	// Both fronts stop together: the process ends with its last client.
	g.Go("fronts", func(ctx context.Context) error {
		if !closed(ctx, f.health.ready) {
			return errors.Join(f.ports.grpc.Close(), f.ports.https.Close())
		}
		return f.serve(ctx, server, web)
	})
}

// newGRPC returns the gRPC front with all services.
func (f *fronts) newGRPC(g *boot.Group) *rpc.Server {
	server := rpc.NewServer(rpc.ServerConfig{
		Identity:     f.id,
		Authenticate: grpcfront.Authentication(f.api.users, f.api.rights),
		Codec:        grpcfront.NewCodec(),
		Root:         grpcfront.Writes,
		Untraced:     grpcfront.Streams,
		Endless:      grpcfront.Endless,
		MaxMessage:   grpcfront.MaxMessage,
		Options: []grpc.ServerOption{
			grpc.Creds(sniff.Credentials{TransportCredentials: f.id.ServerCredentials(false)}),
		},
	})
	st, api, rights := f.state, f.api.pipeline, f.api.rights
	resourcev1.RegisterResourceServiceServer(server, grpcfront.New(api))
	fences := fence.New(api, st.table, st.lasting.Store, st.transient.Store)
	coordinationv1.RegisterFenceServiceServer(server, grpcfront.NewFenceService(fences))
	nodev1.RegisterTunnelServiceServer(server, st.tunnels)
	podv1.RegisterPodServiceServer(server, grpcfront.NewPodService(api, st.tunnels))
	grpcfront.RegisterReflection(server)
	f.spans.serve(server, api, rights, st.members)
	st.members.serveAPI(g, server, rights)
	newSnapshots(f.cfg, st, rights).Register(server)
	return server
}

// newREST returns the HTTP front. With --web-origins, it serves the gRPC services to browsers.
func (f *fronts) newREST(server *rpc.Server) http.Handler {
	registry := f.health.status.Registry()
	var web rest.Web
	if len(f.cfg.webOrigins) > 0 {
		web = grpcweb.New(server, f.cfg.webOrigins)
	}
	return rest.New(rest.Config{
		Web: web,
		API: f.api.pipeline, Authn: f.api.users, Tunnel: f.state.tunnels,
		Registerer: registry,
		Metrics:    promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
		Checks: append([]rest.Check{
			{Name: "ping", Live: true, Run: func(context.Context) error { return nil }},
			{Name: "start", Run: ops.ReadyWhen(f.health.ready)},
			{Name: "shutdown", Run: notStopping(f.health.stopping)},
		}, f.health.checks...),
		OpenIDConfiguration: document(token.ConfigurationType, f.openIDConfiguration),
		JWKS:                document(token.KeySetType, f.api.users.issuer.KeySet),
	})
}

// serve serves both fronts until ctx or one of them ends. gRPC is served on the HTTPS port
// too.
func (f *fronts) serve(ctx context.Context, server *rpc.Server, web http.Handler) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	shared := sniff.NewListener(f.ports.https.Addr())
	results := make(chan error, 3)
	go func() { results <- server.Serve(ctx, f.ports.grpc) }()
	go func() { results <- server.Also(ctx, shared) }()
	go func() {
		results <- rest.Serve(ctx, f.ports.https, f.id.ServerTLS(false), web, slog.Default(), shared.Serve)
	}()
	first := <-results
	cancel()
	return errors.Join(first, <-results, <-results)
}

// openIDConfiguration returns the discovery document. It names the advertised address, as
// Kubernetes does, not the request's Host header: the client chooses that, and the document
// may be cached.
func (f *fronts) openIDConfiguration() ([]byte, error) {
	address, err := f.cfg.address(f.ports.https.Addr())
	if err != nil {
		return nil, err
	}
	return f.api.users.issuer.Configuration("https://" + address.String())
}

// document serves a small JSON document, which clients may cache for an hour.
func document(contentType string, make func() ([]byte, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		data, err := make()
		if err != nil {
			http.Error(w, fmt.Sprintf("cannot make the document: %v", err), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("Cache-Control", "public, max-age=3600")
		_, _ = w.Write(data) // fails only if the client is gone
	})
}

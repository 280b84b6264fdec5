// Command apiserver is the only door to a cluster's state: Kubernetes' API over
// gRPC and HTTPS, on a store that is etcd in this process or elsewhere.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	nodev1 "keelson.dev/proto/keelson/node/v1"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/fieldmanager"
	front "keelson.dev/services/apiserver/internal/front/grpc"
	"keelson.dev/services/apiserver/internal/front/rest"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/tunnel"
	"keelson.dev/services/apiserver/internal/watchcache"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/ops"
	"keelson.dev/services/internal/rpc"
)

func main() {
	boot.Main("apiserver", func(fs *pflag.FlagSet) boot.Run {
		o := newOptions(fs)
		return o.run
	})
}

func (o *options) run(ctx context.Context, g *boot.Group) error {
	if err := o.check(); err != nil {
		return err
	}
	id, err := identity.Load(o.service.Identity)
	if err != nil {
		return boot.Invalid("--identity: %w", err)
	}
	st, err := o.store(ctx, g, id)
	if err != nil {
		return err
	}
	table := resource.NewTable(kind.All()...)
	var stored []*resource.Kind
	for _, k := range table.Kinds() {
		if k.StorePrefix != "" && k.StoredAs == nil {
			stored = append(stored, k)
		}
	}
	cache := watchcache.New(watchcache.Config{Store: st, Kinds: stored})
	g.Go("watch cache", cache.Run)
	authorizer := authz.New()
	authorized := make(chan struct{})
	g.Go("authorization", func(ctx context.Context) error {
		select {
		case <-cache.Ready():
			return authorizer.Follow(ctx, table, cache, func() { close(authorized) })
		case <-ctx.Done():
			return nil
		}
	})
	api := pipeline.New(pipeline.Config{
		Table: table, Store: st, Cache: cache, Authorizer: authorizer, Fields: fieldmanager.New(table),
	})

	listenGRPC, err := net.Listen("tcp", o.listenGRPC)
	if err != nil {
		return fmt.Errorf("--listen-grpc: %w", err)
	}
	listenREST, err := net.Listen("tcp", o.listenREST)
	if err != nil {
		return fmt.Errorf("--listen-https: %w", err)
	}
	authenticator := &certificates{id}
	tunnels := tunnel.New(tunnel.Config{})
	unary, stream := front.Authentication(authenticator)
	server := rpc.NewServer(rpc.ServerConfig{
		Identity:   id,
		Unary:      []grpc.UnaryServerInterceptor{unary},
		Stream:     []grpc.StreamServerInterceptor{stream},
		Root:       front.Writes,
		Untraced:   front.Streams,
		Reflection: true,
	})
	resourcev1.RegisterResourceServiceServer(server.Server, front.New(api))
	nodev1.RegisterTunnelServiceServer(server.Server, tunnels)
	web := rest.New(rest.Config{API: api, Authn: authenticator, Tunnel: tunnels})
	ready := make(chan struct{})
	g.Go("grpc", func(ctx context.Context) error {
		return afterwards(ctx, ready, listenGRPC, func() error { return server.Serve(ctx, listenGRPC) })
	})
	g.Go("https", func(ctx context.Context) error {
		return afterwards(ctx, ready, listenREST, func() error {
			return rest.Serve(ctx, listenREST, id.ServerTLS(false), web, slog.Default())
		})
	})
	g.Go("start", func(ctx context.Context) error {
		for _, step := range []<-chan struct{}{cache.Ready(), authorized} {
			select {
			case <-step:
			case <-ctx.Done():
				return nil
			}
		}
		close(ready)
		slog.Info("ready", "grpc", listenGRPC.Addr().String(), "https", listenREST.Addr().String())
		return nil
	})
	status := ops.New()
	status.Ready("started", ops.ReadyWhen(ready))
	g.Go("ops", func(ctx context.Context) error { return status.Serve(ctx, o.service.OpsAddress) })
	return nil
}

// afterwards serves once the server is ready.
func afterwards(ctx context.Context, ready <-chan struct{}, l net.Listener, serve func() error) error {
	select {
	case <-ready:
		return serve()
	case <-ctx.Done():
		return l.Close()
	}
}

// certificates names callers by their client certificates.
type certificates struct{ id *identity.Source }

func (c *certificates) Authenticate(_ context.Context, certs []*x509.Certificate, _ string) (request.User, error) {
	if len(certs) == 0 {
		return request.User{Name: "system:anonymous", Groups: []string{"system:unauthenticated"}}, nil
	}
	if _, err := certs[0].Verify(x509.VerifyOptions{Roots: c.id.Current().Roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return request.User{}, errors.New("the client certificate is not valid")
	}
	return request.User{Name: certs[0].Subject.CommonName, Groups: append(certs[0].Subject.Organization, "system:authenticated")}, nil
}

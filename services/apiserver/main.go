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
	"path/filepath"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	front "keelson.dev/services/apiserver/internal/front/grpc"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/memory"
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
	st, err := o.store(ctx, g)
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
	api := pipeline.New(pipeline.Config{Table: table, Store: st, Cache: cache})

	listener, err := net.Listen("tcp", o.listenGRPC)
	if err != nil {
		return fmt.Errorf("--listen-grpc: %w", err)
	}
	unary, stream := front.Authentication(&certificates{id})
	server := rpc.NewServer(rpc.ServerConfig{
		Identity:   id,
		Unary:      []grpc.UnaryServerInterceptor{unary},
		Stream:     []grpc.StreamServerInterceptor{stream},
		Root:       front.Writes,
		Reflection: true,
	})
	resourcev1.RegisterResourceServiceServer(server.Server, front.New(api))
	g.Go("grpc", func(ctx context.Context) error {
		select {
		case <-cache.Ready():
		case <-ctx.Done():
			return listener.Close()
		}
		slog.Info("ready", "grpc", listener.Addr().String())
		return server.Serve(ctx, listener)
	})
	status := ops.New()
	status.Ready("watch-cache", ops.ReadyWhen(cache.Ready()))
	g.Go("ops", func(ctx context.Context) error { return status.Serve(ctx, o.service.OpsAddress) })
	return nil
}

func (o *options) store(ctx context.Context, g *boot.Group) (store.Store, error) {
	if o.memory {
		s := memory.New()
		g.OnStop("store", func(context.Context) error { s.Close(); return nil })
		return s, nil
	}
	s, err := etcd.Start(ctx, etcd.EmbeddedConfig{Name: o.name, Dir: filepath.Join(o.dataDir, "etcd")})
	if err != nil {
		return nil, err
	}
	g.OnStop("store", func(context.Context) error { s.Close(); return nil })
	return s, nil
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

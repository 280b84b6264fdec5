package main

import (
	"context"
	"path/filepath"
	"strings"

	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/memory"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
)

// store opens the state: in memory, in an etcd elsewhere, or in one of our own.
func (o *options) store(ctx context.Context, g *boot.Group, id *identity.Source) (store.Store, error) {
	if o.memory {
		s := memory.New()
		g.OnStop("store", func(context.Context) error { s.Close(); return nil })
		return s, nil
	}
	if len(o.etcdServers) > 0 {
		c := etcd.RemoteConfig{Endpoints: o.etcdServers}
		if !strings.HasPrefix(o.etcdServers[0], "http://") {
			c.TLS = id.ClientTLS()
		}
		s, err := etcd.Dial(ctx, c)
		if err != nil {
			return nil, err
		}
		g.OnStop("store", func(context.Context) error { s.Close(); return nil })
		g.Go("store upkeep", func(ctx context.Context) error { return s.Maintain(ctx, etcd.Retention{}) })
		return s, nil
	}
	dir := o.service.Identity
	s, err := etcd.Start(ctx, etcd.EmbeddedConfig{
		Name:         o.name,
		Dir:          filepath.Join(o.dataDir, "etcd"),
		ListenClient: o.etcdListenClient,
		ClientTLS:    etcd.TLSFiles{Cert: filepath.Join(dir, "tls.crt"), Key: filepath.Join(dir, "tls.key"), CA: filepath.Join(dir, "ca.crt")},
		ClientNames:  []string{"kube-apiserver", "kubernetes-admin"},
	})
	if err != nil {
		return nil, err
	}
	g.OnStop("store", func(context.Context) error { s.Close(); return nil })
	g.Go("store upkeep", func(ctx context.Context) error { return s.Maintain(ctx, etcd.Retention{}) })
	return s, nil
}

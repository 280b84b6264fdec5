package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/memory"
	"keelson.dev/services/apiserver/internal/store/raft"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
)

// external is an apiserver with one store for everything, which is not its own: an etcd
// elsewhere, or this process's memory.
type external struct {
	memberless

	cfg *config
	id  *identity.Source
}

func (e *external) openLasting(ctx context.Context, g *boot.Group) (store.Store, error) {
	if e.cfg.memory {
		s := memory.New()
		g.OnStop("store", func(context.Context) error { s.Close(); return nil })
		return s, nil
	}
	cfg := etcd.RemoteConfig{Endpoints: e.cfg.etcdServers}
	if strings.HasPrefix(e.cfg.etcdServers[0], "https://") {
		cfg.TLS = e.id.ClientTLS()
	}
	s, err := etcd.Dial(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("--etcd-servers: %w", err)
	}
	g.OnStop("store", func(context.Context) error { s.Close(); return nil })
	g.Go("store upkeep", func(ctx context.Context) error { return s.Maintain(ctx, etcd.Retention{}) })
	return startReach(g, "etcd", s), nil
}

func (e *external) openTransient(context.Context, *boot.Group, store.Store, offered) (store.Store, error) {
	return nil, errors.New("an external store holds transient kinds too")
}

func (e *external) shared() bool { return len(e.cfg.etcdServers) > 0 }

// alone is the only apiserver of its cluster, with both stores in this process.
type alone struct {
	memberless

	cfg *config
	id  *identity.Source
}

func (a *alone) openLasting(ctx context.Context, g *boot.Group) (store.Store, error) {
	s, err := startEtcd(ctx, g, a.cfg, a.id, nil)
	if err != nil {
		return nil, err
	}
	return startReach(g, "etcd", s), nil
}

func (a *alone) openTransient(ctx context.Context, g *boot.Group, _ store.Store, _ offered) (store.Store, error) {
	s, err := openRaft(ctx, a.cfg, raft.Config{Service: raft.NewService(refusePeers)})
	if err != nil {
		return nil, err
	}
	quick := startReach(g, "raft", s)
	g.OnStop("raft store", func(context.Context) error { s.Close(); return nil })
	return quick, nil
}

func (a *alone) shared() bool { return false }

// refusePeers authorizes no peer.
func refusePeers(context.Context) error {
	return status.Error(codes.PermissionDenied, "this apiserver is alone")
}

// operator is the common name of the certificate of cluster operators. With it, etcd's own
// tools may connect to --etcd-listen-client.
const operator = "kubernetes-admin"

// startEtcd starts the embedded etcd; peers is nil for an etcd of one member.
func startEtcd(ctx context.Context, g *boot.Group, cfg *config, id *identity.Source, peers *etcd.PeerConfig) (*etcd.Embedded, error) {
	files := etcd.TLSFiles{
		Cert: filepath.Join(cfg.Identity, identity.CertFile),
		Key:  filepath.Join(cfg.Identity, identity.KeyFile),
		CA:   filepath.Join(cfg.Identity, identity.CAFile),
	}
	s, err := etcd.Start(ctx, etcd.EmbeddedConfig{
		Name: cfg.name, Dir: etcdDir(cfg), ListenClient: cfg.etcdListenClient, ClientTLS: files,
		ClientNames: []string{id.Name(), operator}, Peers: peers,
	})
	if err != nil {
		return nil, err
	}
	g.OnStop("store", func(context.Context) error { s.Close(); return nil })
	g.Go("store upkeep", func(ctx context.Context) error { return s.Maintain(ctx, etcd.Retention{}) })
	return s, nil
}

// etcdDir is the data directory of the embedded etcd.
func etcdDir(cfg *config) string { return filepath.Join(cfg.dataDir, "etcd") }

// The raft store keeps at most this many Events, and drops the oldest first.
const (
	maxEvents     = 50_000
	maxEventBytes = 64 << 20
)

// openRaft opens the raft store; rc names the other members.
func openRaft(ctx context.Context, cfg *config, rc raft.Config) (*raft.Store, error) {
	rc.Name, rc.Dir = cfg.name, filepath.Join(cfg.dataDir, "raft")
	rc.Bounds = []raft.Bound{{Prefix: "/registry/events/", Entries: maxEvents, Bytes: maxEventBytes}}
	// Watches resume from the watch cache's history, so the store's own may be short.
	rc.HistoryEvents, rc.HistoryBytes = 5_000, 4<<20
	return raft.Open(ctx, rc)
}

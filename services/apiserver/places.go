package main

import (
	"context"
	"path/filepath"

	storev1 "keelson.dev/proto/keelson/store/v1"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/raft"
	"keelson.dev/services/apiserver/internal/store/reach"
	"keelson.dev/services/apiserver/internal/tunnel"
	"keelson.dev/services/apiserver/internal/watchcache"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
)

// Events are bounded: the oldest go first.
const (
	maxEvents     = 50_000
	maxEventBytes = 64 << 20
)

// startPlaces feeds the watch caches. Beside an etcd of our own, transient kinds
// lie in a raft store; in an etcd elsewhere, which other apiservers share, and in
// memory, everything lies together.
func startPlaces(ctx context.Context, g *boot.Group, cfg *config, id *identity.Source, st store.Store, m *members, tunnels *tunnel.Server, table *resource.Table) (lasting, transient pipeline.Place, err error) {
	if cfg.memory || len(cfg.etcdServers) > 0 {
		lasting = startCache(g, "watch cache", st, stored(table, func(*resource.Kind) bool { return true }))
		return lasting, lasting, nil
	}
	if m != nil && m.remote != nil {
		lasting, transient = startCaches(g, table, st, startReach(g, "raft", m.store(g, storev1.Place_PLACE_TRANSIENT)))
		return lasting, transient, nil
	}
	rc := m.raft(cfg)
	if rc.Service, err = m.servePeers(g, cfg, tunnels, st); err != nil {
		return lasting, transient, err
	}
	rc.Dir = filepath.Join(cfg.dataDir, "raft")
	rc.Bounds = []raft.Bound{{Prefix: "/registry/events/", Entries: maxEvents, Bytes: maxEventBytes}}
	// Watches resume from the watch cache's history.
	rc.HistoryEvents, rc.HistoryBytes = 5_000, 4<<20
	opened, err := raft.Open(ctx, rc)
	if err != nil {
		return lasting, transient, err
	}
	quick := startReach(g, "raft", opened)
	if m != nil {
		m.service.Serve(opened)
		m.stores.Serve(storev1.Place_PLACE_TRANSIENT, quick)
	}
	g.OnStop("raft store", func(context.Context) error { opened.Close(); return nil })
	lasting, transient = startCaches(g, table, st, quick)
	return lasting, transient, nil
}

// startReach looks whether a store can be reached, and refuses what it is asked while
// it cannot.
func startReach(g *boot.Group, name string, st store.Store) store.Store {
	s := reach.New(name, st)
	g.Go("reach of "+name, s.Run)
	return s
}

// startCaches feeds a watch cache for each of the two stores.
func startCaches(g *boot.Group, table *resource.Table, st, quick store.Store) (lasting, transient pipeline.Place) {
	return startCache(g, "watch cache", st, stored(table, func(k *resource.Kind) bool { return !k.Transient })),
		startCache(g, "watch cache of transient kinds", quick, stored(table, func(k *resource.Kind) bool { return k.Transient }))
}

func startCache(g *boot.Group, name string, st store.Store, kinds []*resource.Kind) pipeline.Place {
	cache := watchcache.New(watchcache.Config{Store: st, Kinds: kinds})
	g.Go(name, cache.Run)
	return pipeline.Place{Store: st, Cache: cache}
}

// stored are the rows whose objects lie in a store under their own name, of those
// that are wanted.
func stored(table *resource.Table, wanted func(*resource.Kind) bool) []*resource.Kind {
	var out []*resource.Kind
	for _, k := range table.Kinds() {
		if k.Virtual == "" && k.StoredAs == nil && wanted(k) {
			out = append(out, k)
		}
	}
	return out
}

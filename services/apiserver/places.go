package main

import (
	"context"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	nodev1 "keelson.dev/proto/keelson/node/v1"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/reach"
	"keelson.dev/services/apiserver/internal/tracestore"
	"keelson.dev/services/apiserver/internal/tunnel"
	"keelson.dev/services/apiserver/internal/watchcache"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
)

// state is everything that the API is served from.
type state struct {
	members membership
	table   *resource.Table
	// lasting and transient are equal where one store holds everything.
	lasting, transient pipeline.Place
	nodes              *watchcache.KindCache
	tunnels            *tunnel.Server
}

// startState opens the stores and starts their watch caches.
func startState(ctx context.Context, g *boot.Group, cfg *config, id *identity.Source, spans *tracestore.Store) (*state, error) {
	members, err := newMembership(ctx, g, cfg, id)
	if err != nil {
		return nil, err
	}
	s := &state{members: members, table: resource.NewTable(kind.All()...)}
	lasting, err := members.openLasting(ctx, g)
	if err != nil {
		return nil, err
	}
	one := cfg.oneStore()
	s.lasting = newPlace(lasting, stored(s.table, func(k *resource.Kind) bool { return one || !k.Transient }))
	s.nodes = s.lasting.Cache.Kind(s.table.ByKind(corev1.SchemeGroupVersion.WithKind("Node")))
	s.tunnels = tunnel.New(tunnel.Config{Peers: func() []nodev1.RelayServiceClient { return relayClients(members.peers()) }, Registered: s.node})
	if one {
		s.transient = s.lasting
		g.Go("watch cache", s.lasting.Cache.Run)
		return s, nil
	}
	transient, err := members.openTransient(ctx, g, lasting, offered{tunnels: s.tunnels, spans: spans})
	if err != nil {
		return nil, err
	}
	s.transient = newPlace(transient, stored(s.table, func(k *resource.Kind) bool { return k.Transient }))
	g.Go("watch cache", s.lasting.Cache.Run)
	g.Go("watch cache of transient kinds", s.transient.Cache.Run)
	return s, nil
}

// node returns the UID of the Node called name, and false if there is none.
func (s *state) node(name string) (types.UID, bool) {
	item, ok := s.nodes.Get(s.nodes.Kind().Key("", name))
	if !ok {
		return "", false
	}
	return item.Object().GetUID(), true
}

// startReach wraps a store so that it refuses requests while it cannot be reached.
func startReach(g *boot.Group, name string, st store.Store) store.Store {
	s := reach.New(name, st)
	g.Go("reach of "+name, s.Run)
	return s
}

// newPlace returns a store with a watch cache of kinds, which has yet to run.
func newPlace(st store.Store, kinds []*resource.Kind) pipeline.Place {
	return pipeline.Place{Store: st, Cache: watchcache.New(watchcache.Config{Store: st, Kinds: kinds})}
}

// stored returns the wanted kinds whose objects are stored under their own name.
func stored(table *resource.Table, wanted func(*resource.Kind) bool) []*resource.Kind {
	var out []*resource.Kind
	for _, k := range table.Kinds() {
		if !k.Virtual() && k.StoredAs == nil && wanted(k) {
			out = append(out, k)
		}
	}
	return out
}

// relayClients returns a RelayService client over each connection.
func relayClients(conns []grpc.ClientConnInterface) []nodev1.RelayServiceClient {
	var out []nodev1.RelayServiceClient
	for _, c := range conns {
		out = append(out, nodev1.NewRelayServiceClient(c))
	}
	return out
}

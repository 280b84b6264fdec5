package main

import (
	"context"

	"google.golang.org/grpc"

	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/tracestore"
	"keelson.dev/services/apiserver/internal/tunnel"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
)

// membership is this apiserver's relation to the stores and to the other apiservers. The
// flags choose one: external, alone, storeMember or remote.
type membership interface {
	// openLasting opens the store of lasting kinds, or of all kinds where the two are one
	// (config.oneStore).
	openLasting(ctx context.Context, g *boot.Group) (store.Store, error)
	// openTransient opens the store of transient kinds. It is called after openLasting,
	// with its store, and not where the two stores are one.
	openTransient(ctx context.Context, g *boot.Group, lasting store.Store, offer offered) (store.Store, error)
	// peers returns a connection to each other apiserver that is a member.
	peers() []grpc.ClientConnInterface
	// serveAPI registers MemberService for clients.
	serveAPI(g *boot.Group, r grpc.ServiceRegistrar, rights authz.Authorizer)
	// depart completes the removal of this member, if one has begun: see stop.go.
	depart(ctx context.Context, places ...pipeline.Place)
	// shared reports whether other apiservers may serve the same cluster.
	shared() bool
}

// offered is what a member serves to the other apiservers besides its stores.
type offered struct {
	// tunnels lead to the nodes that are connected to this apiserver.
	tunnels *tunnel.Server
	// spans are those that services have sent to this apiserver.
	spans *tracestore.Store
}

// newMembership returns the membership that the flags choose. A member that has yet to
// join waits until the members have answered.
func newMembership(ctx context.Context, g *boot.Group, cfg *config, id *identity.Source) (membership, error) {
	switch {
	case cfg.oneStore():
		return &external{cfg: cfg, id: id}, nil
	case len(cfg.Peers) == 0 && len(cfg.join) == 0:
		return &alone{cfg: cfg, id: id}, nil
	case len(cfg.Peers) == 0 && !cfg.member:
		return newRemote(ctx, g, cfg, id)
	}
	return newMember(ctx, g, cfg, id)
}

// memberless is the part of membership that an apiserver without members does nothing for.
type memberless struct{}

func (memberless) peers() []grpc.ClientConnInterface { return nil }

func (memberless) serveAPI(*boot.Group, grpc.ServiceRegistrar, authz.Authorizer) {}

func (memberless) depart(context.Context, ...pipeline.Place) {}

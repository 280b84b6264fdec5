package main

import (
	"context"

	"google.golang.org/grpc"

	nodev1 "keelson.dev/proto/keelson/node/v1"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/store"
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
	// with its store, and not where the two stores are one. tunnels is what the other
	// apiservers reach the nodes of this one through.
	openTransient(ctx context.Context, g *boot.Group, lasting store.Store, tunnels *tunnel.Server) (store.Store, error)
	// relays returns a client of each other apiserver that may have a tunnel to a node.
	relays() []nodev1.RelayServiceClient
	// serveAPI registers MemberService for clients.
	serveAPI(g *boot.Group, r grpc.ServiceRegistrar, rights authz.Authorizer)
	// depart completes the removal of this member, if one has begun: see stop.go.
	depart(ctx context.Context, places ...pipeline.Place)
	// shared reports whether other apiservers may serve the same cluster.
	shared() bool
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

func (memberless) relays() []nodev1.RelayServiceClient { return nil }

func (memberless) serveAPI(*boot.Group, grpc.ServiceRegistrar, authz.Authorizer) {}

func (memberless) depart(context.Context, ...pipeline.Place) {}

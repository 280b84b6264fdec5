// Command apiserver is the only door to a cluster's state: Kubernetes' API over
// gRPC and HTTPS, on a store that is etcd in this process or elsewhere.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/bootstrap"
	"keelson.dev/services/apiserver/internal/fence"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/tunnel"
	"keelson.dev/services/apiserver/internal/watchcache"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/ops"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "snapshot" {
		os.Exit(snapshotCommand(os.Args[2:]))
	}
	boot.Main("apiserver", func(fs *pflag.FlagSet) boot.Run { return newOptions(fs).run })
}

// run starts the apiserver: configuration, identity, store, watch cache, rights,
// pipeline, fronts; what every cluster has; then it serves. The way down is the
// same list backwards.
func (o *options) run(ctx context.Context, g *boot.Group) error {
	cfg, err := o.config()
	if err != nil {
		return err
	}
	id, err := identity.Load(cfg.Identity)
	if err != nil {
		return boot.Invalid("--identity: %w", err)
	}
	if cfg.recover {
		return recoverStores(ctx, cfg, id)
	}
	spans, err := startTelemetry(ctx, g, cfg)
	if err != nil {
		return err
	}
	members, err := newMembers(ctx, g, cfg, id)
	if err != nil {
		return err
	}
	st, err := startStore(ctx, g, cfg, id, members)
	if err != nil {
		return err
	}
	if !cfg.memory {
		st = startReach(g, "etcd", st)
	}
	table := resource.NewTable(kind.All()...)
	var nodes *watchcache.KindCache // from the caches' start on; the fronts serve after it
	tunnels := tunnel.New(tunnel.Config{Peers: members.relays, Registered: func(node string) (types.UID, bool) {
		item, ok := nodes.Get(nodes.Kind().Key("", node))
		if !ok {
			return "", false
		}
		return item.Object.GetUID(), true
	}})
	lasting, transient, err := startPlaces(ctx, g, cfg, id, st, members, tunnels, table)
	if err != nil {
		return err
	}
	cache := lasting.Cache
	nodes = cache.Kind(table.ByKind(corev1.SchemeGroupVersion.WithKind("Node")))

	rights := authz.New()
	synced := make(chan struct{})
	g.Go("authorization", func(ctx context.Context) error {
		if !closed(ctx, cache.Ready()) {
			return nil
		}
		return rights.Follow(ctx, table, cache, func() { close(synced) })
	})
	users, err := newUsers(cfg, id, pipeline.NewState(table, cache, st))
	if err != nil {
		return err
	}
	addresses, repaired, err := startAddresses(g, cfg, st)
	if err != nil {
		return err
	}
	api := newPipeline(cfg, id, table, lasting, transient, rights, users, addresses)
	g.Go("rights of watches", api.Recheck)

	g.Go("addresses of balancers", cfg.Balancers.follow)
	listenGRPC, err := cfg.listen("grpc", cfg.ListenGRPC)
	if err != nil {
		return boot.Invalid("--listen-grpc: %w", err)
	}
	listenREST, err := cfg.listen("https", cfg.ListenREST)
	if err != nil {
		return boot.Invalid("--listen-https: %w", err)
	}
	status := ops.New()
	ready := make(chan struct{})
	status.Ready("start", ops.ReadyWhen(ready))
	for name, place := range map[string]pipeline.Place{"lasting": lasting, "transient": transient} {
		registerLeading(status.Registry(), name, place.Store)
	}
	checks := startChecks(g, cfg, lasting, transient)
	for _, c := range checks {
		status.Ready(c.Name, c.Run)
	}
	g.OnStop("place among the members", func(ctx context.Context) error {
		depart(ctx, members, lasting, transient)
		return nil
	})
	stopping, stop := context.WithCancel(ctx)
	status.Ready("shutdown", notStopping(stopping))
	g.Go("ops", func(ctx context.Context) error { return status.Serve(ctx, cfg.OpsAddress) })
	startFronts(g, fronts{
		cfg: cfg, id: id, api: api, users: users, rights: rights, spans: spans, status: status,
		fences: fence.New(api, table, lasting.Store, transient.Store),
		nodes:  nodes.Len,
		ready:  ready, stopping: stopping, checks: checks, grpc: listenGRPC, https: listenREST, members: members, tunnels: tunnels,
		snapshots: newSnapshots(cfg, lasting, transient, rights),
	})
	g.OnStop("handover", func(ctx context.Context) error {
		stop()
		handOver(ctx, cfg, members, lasting, transient)
		return nil
	})
	g.Go("start", func(ctx context.Context) error {
		for _, step := range []<-chan struct{}{lasting.Cache.Ready(), transient.Cache.Ready(), synced, repaired} {
			if !closed(ctx, step) {
				return nil
			}
		}
		if err := bootstrap.Run(ctx, bootstrap.Config{API: api, ClientCA: cfg.CA}); err != nil {
			return fmt.Errorf("bootstrap: %w", err)
		}
		if err := bootstrap.Await(ctx, rights); err != nil {
			return err
		}
		close(ready)
		slog.InfoContext(ctx, "ready", "grpc", listenGRPC.Addr().String(), "https", listenREST.Addr().String())
		presence, err := newPresence(cfg, api, listenREST.Addr())
		if err != nil {
			return err
		}
		return presence.Run(ctx)
	})
	return nil
}

// closed waits for a channel; false if ctx ended before.
func closed(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

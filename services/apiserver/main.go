// Command apiserver is the only process that reads and writes a cluster's state. It serves
// Kubernetes' API over gRPC and HTTPS, from an etcd in this process or elsewhere.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/pflag"

	"keelson.dev/services/apiserver/internal/bootstrap"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "snapshot" {
		os.Exit(snapshotCommand(os.Args[2:]))
	}
	boot.Main("apiserver", func(fs *pflag.FlagSet) boot.Run { return newOptions(fs).run })
}

// run starts the apiserver in order: configuration, identity, telemetry, stores and watch
// caches, the API, listeners, readiness, fronts. The fronts serve once bootstrap has written
// what every cluster has. The group stops all of it in reverse order: see stop.go.
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
	st, err := startState(ctx, g, cfg, id, spans.store)
	if err != nil {
		return err
	}
	api, err := startAPI(g, cfg, id, st)
	if err != nil {
		return err
	}
	ports, err := openPorts(g, cfg)
	if err != nil {
		return err
	}
	health := startHealth(ctx, g, cfg, st)
	g.OnStop("place among the members", func(ctx context.Context) error {
		st.members.depart(ctx, st.lasting, st.transient)
		return nil
	})
	g.Go("ops", func(ctx context.Context) error { return health.status.Serve(ctx, cfg.OpsAddress) })
	startFronts(g, &fronts{cfg: cfg, id: id, state: st, api: api, spans: spans, ports: ports, health: health})
	g.OnStop("handover", func(ctx context.Context) error {
		health.stop()
		handOver(ctx, cfg, st)
		return nil
	})
	g.Go("start", func(ctx context.Context) error { return finishStart(ctx, cfg, st, api, ports, health) })
	return nil
}

// finishStart lets the fronts serve once the caches have loaded and bootstrap has run. It
// then keeps this apiserver's address in the Service kubernetes until ctx ends.
func finishStart(ctx context.Context, cfg *config, st *state, api *api, ports ports, health *health) error {
	for _, step := range []<-chan struct{}{st.lasting.Cache.Ready(), st.transient.Cache.Ready(), api.synced, api.repaired} {
		if !closed(ctx, step) {
			return nil
		}
	}
	if err := bootstrap.Run(ctx, bootstrap.Config{API: api.pipeline, ClientCA: cfg.CA}); err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	if err := bootstrap.Await(ctx, api.rights); err != nil {
		return err
	}
	close(health.ready)
	slog.InfoContext(ctx, "ready", "grpc", ports.grpc.Addr().String(), "https", ports.https.Addr().String())
	presence, err := newPresence(cfg, api.pipeline, ports.https.Addr())
	if err != nil {
		return err
	}
	return presence.Run(ctx)
}

// closed waits until done is closed. It returns false if ctx ends first.
func closed(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	case <-ctx.Done():
		return false
	}
}

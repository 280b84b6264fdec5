// Command controller-manager runs the control loops that make a cluster what its
// objects say: see catalogue.go for the list.
//
// It speaks to the apiservers alone. Of several processes one works; the others
// follow with warm caches and take over within two seconds.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/pflag"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/garbage"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/event"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/leader"
	"keelson.dev/services/internal/ops"
	"keelson.dev/services/internal/rpc"
	"keelson.dev/services/internal/telemetry"
)

const name = "controller-manager"

func main() {
	boot.Main(name, func(fs *pflag.FlagSet) boot.Run {
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
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("host name: %w", err)
	}
	instance := host + "_" + uuid.NewString()[:8]

	conn, err := rpc.Dial(id, o.service.APIServers, name)
	if err != nil {
		return boot.Invalid("--apiserver: %w", err)
	}
	g.OnStop("connection", func(context.Context) error { return conn.Close() })
	tel, err := telemetry.Start(ctx, telemetry.Config{Service: name, Instance: instance, Conn: conn})
	if err != nil {
		return err
	}
	g.OnStop("telemetry", tel.Shutdown)
	c := client.New(conn, name)

	events := event.NewRecorder(c, name, instance)
	g.Go("events", events.Run)
	state := cluster.New(c, events)
	metadata := garbage.NewMetadata(state)
	server := ops.New()
	server.Registry().MustRegister(controller.Collectors()...)
	server.Ready("apiserver", rpc.Connected(conn))
	for _, cache := range state.Caches {
		g.Go("cache of "+cache.Kind().Resource, cache.Run)
		server.Ready("cache of "+cache.Kind().Resource, cacheReady(cache))
	}
	for _, cache := range metadata {
		g.Go("metadata of "+cache.Kind().Resource, cache.Run)
		server.Ready("metadata of "+cache.Kind().Resource, cacheReady(cache))
	}
	g.Go("operations", func(ctx context.Context) error { return server.Serve(ctx, o.service.OpsAddress) })

	work := func(ctx context.Context) error {
		defer events.Flush()
		if !catchUp(ctx, state) {
			return nil
		}
		return controller.Run(ctx, o.catalogue(state, metadata, id)...)
	}
	if !o.leaderElect {
		g.Go("controllers", work)
		return nil
	}
	leads := &leader.State{}
	server.Note("leadership", leads.String)
	g.Go("leader", func(ctx context.Context) error {
		return leader.Run(ctx, c, leader.Config{Name: name, Identity: instance, Pause: true, State: leads}, work)
	})
	return nil
}

// catchUp waits until the caches show what a predecessor wrote last; false is the
// end of ctx.
func catchUp(ctx context.Context, state *cluster.Cluster) bool {
	for {
		err := state.CatchUp(ctx)
		if err == nil {
			return true
		}
		slog.Warn("caches are behind", "error", err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// cacheReady is a check that says why a cache has not synced.
func cacheReady(cache cluster.Cache) ops.Check {
	return func(context.Context) error {
		select {
		case <-cache.Synced():
			return nil
		default:
			if err := cache.Err(); err != nil {
				return err
			}
			return fmt.Errorf("not synced yet")
		}
	}
}

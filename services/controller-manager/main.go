// Command controller-manager runs the controllers, which make the cluster's state match
// its objects: catalogue.go lists them, and --controllers selects which of them run.
//
// It is a client of the apiservers and of nothing else. One of its processes works; the
// others keep their caches warm and take over within two seconds.
package main

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/spf13/pflag"

	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/podautoscaler"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/event"
	"keelson.dev/services/internal/ops"
)

const name = "controller-manager"

func main() {
	boot.Main(name, func(fs *pflag.FlagSet) boot.Run { return newOptions(fs).run })
}

// run starts the service in order; the group stops it in reverse order.
func (o *options) run(ctx context.Context, g *boot.Group) error {
	if err := o.check(); err != nil {
		return err
	}
	svc, err := boot.StartElected(ctx, g, o.service, boot.Program{Name: name})
	if err != nil {
		return err
	}
	events := event.NewRecorder(svc.Client, name, svc.Instance)
	g.Go("events", events.Run)
	o.catalogue.ca = func() []byte { return svc.Identity.Current().RootsPEM }
	state := cluster.New(svc.Client, events, nil)
	svc.Status.Registry().MustRegister(controller.Collectors()...)
	svc.Status.Registry().MustRegister(podautoscaler.Collectors()...)
	// Controllers are made for each term of leadership. These are not run: they only ask
	// for the caches, which stay warm between the terms.
	o.catalogue.build(state)
	for _, cache := range state.Seal() {
		g.Go("cache of "+cache.Kind().Resource, cache.Run)
		svc.Status.Ready("cache of "+cache.Kind().Resource, cacheReady(cache))
	}
	svc.LeadSteps(g, func(ctx context.Context) error {
		defer events.Flush()
		if !catchUp(ctx, state) {
			return nil
		}
		return controller.Run(ctx, o.catalogue.build(state)...)
	})
	return nil
}

// catchUp waits until the caches contain everything that an earlier leader wrote. It
// returns false if ctx ends first.
func catchUp(ctx context.Context, state *cluster.Cluster) bool {
	for {
		err := state.CatchUp(ctx)
		if err == nil {
			return true
		}
		slog.WarnContext(ctx, "caches are behind", "error", err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// cacheReady is a check that fails, with the reason, until the cache has synced.
func cacheReady(cache cluster.Cache) ops.Check {
	return func(context.Context) error {
		select {
		case <-cache.Synced():
			return nil
		default:
			if err := cache.Err(); err != nil {
				return err
			}
			return errors.New("not synced yet")
		}
	}
}

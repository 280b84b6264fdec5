// Command scheduler assigns pods to nodes. It is a client of the apiservers and of
// nothing else. One of its processes works; the others keep their caches warm and take
// over within two seconds.
package main

import (
	"context"

	"github.com/spf13/pflag"

	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/event"
	"keelson.dev/services/internal/ops"
	"keelson.dev/services/scheduler/internal/scheduler"
)

const name = "scheduler"

func main() {
	boot.Main(name, func(fs *pflag.FlagSet) boot.Run { return newOptions(fs).run })
}

// options are the flags.
type options struct {
	service       *boot.Elected
	schedulerName string
}

func newOptions(fs *pflag.FlagSet) *options {
	o := &options{service: boot.ElectedFlags(fs, name)}
	fs.StringVar(&o.schedulerName, "scheduler-name", "default-scheduler", "the spec.schedulerName of the pods to schedule")
	return o
}

// run starts the service in order; the group stops it in reverse order.
func (o *options) run(ctx context.Context, g *boot.Group) error {
	svc, err := boot.StartElected(ctx, g, o.service, boot.Program{Name: name})
	if err != nil {
		return err
	}
	events := event.NewRecorder(svc.Client, o.schedulerName, svc.Instance)
	g.Go("events", events.Run)
	caches := scheduler.NewCaches(svc.Client)
	s := scheduler.New(scheduler.Config{Client: svc.Client, Caches: caches, Events: events, Name: o.schedulerName})
	svc.Status.Registry().MustRegister(s.Collectors()...)
	for _, cache := range caches.All() {
		g.Go("cache of "+cache.Kind().Resource, cache.Run)
		svc.Status.Ready("cache of "+cache.Kind().Resource, ops.ReadyWhen(cache.Synced()))
	}
	svc.Status.Health("scheduling", s.Check)
	svc.Lead(g, s.Lead)
	return nil
}

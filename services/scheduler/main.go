// Command scheduler puts pods on nodes. It speaks to the apiservers alone. Of
// several processes one works; the others follow with warm caches and take over
// within two seconds.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/google/uuid"
	"github.com/spf13/pflag"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/event"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/leader"
	"keelson.dev/services/internal/ops"
	"keelson.dev/services/internal/rpc"
	"keelson.dev/services/internal/telemetry"
	"keelson.dev/services/scheduler/internal/scheduler"
)

const name = "scheduler"

func main() {
	boot.Main(name, func(fs *pflag.FlagSet) boot.Run {
		o := newOptions(fs)
		return o.run
	})
}

// options are the flags.
type options struct {
	service       *boot.Service
	leaderElect   bool
	schedulerName string
}

func newOptions(fs *pflag.FlagSet) *options {
	o := &options{service: boot.ServiceFlags(fs)}
	fs.BoolVar(&o.leaderElect, "leader-elect", false, "let one of several schedulers work, by the Lease kube-system/scheduler")
	fs.StringVar(&o.schedulerName, "scheduler-name", "default-scheduler", "the spec.schedulerName of the pods to schedule")
	return o
}

// run starts the service, in order; it goes down in the reverse.
func (o *options) run(ctx context.Context, g *boot.Group) error {
	if err := o.service.Check(); err != nil {
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

	events := event.NewRecorder(c, o.schedulerName, instance)
	g.Go("events", events.Run)
	caches := scheduler.NewCaches(c)
	s := scheduler.New(scheduler.Config{Client: c, Caches: caches, Events: events, Name: o.schedulerName})
	status := ops.New()
	status.Registry().MustRegister(s.Collectors()...)
	status.Ready("apiserver", rpc.Connected(conn))
	for _, cache := range caches.All() {
		g.Go("cache of "+cache.Kind().Resource, cache.Run)
		status.Ready("cache of "+cache.Kind().Resource, ops.ReadyWhen(cache.Synced()))
	}
	g.Go("operations", func(ctx context.Context) error { return status.Serve(ctx, o.service.OpsAddress) })

	if !o.leaderElect {
		g.Go("scheduler", s.Lead)
		return nil
	}
	state := &leader.State{}
	status.Note("leadership", state.String)
	g.Go("leader", func(ctx context.Context) error {
		return leader.Run(ctx, c, leader.Config{Name: name, Identity: instance, State: state}, s.Lead)
	})
	return nil
}

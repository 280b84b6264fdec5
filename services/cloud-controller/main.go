// Command cloud-controller connects a cluster to its cloud: it tells Nodes what
// their machines are, removes Nodes whose machine is gone, and gives Services of
// type LoadBalancer an address. The cloud is the provider in this program, or
// another program that serves keelson.cloud.v1.
package main

import (
	"context"
	"net/netip"
	"os"
	"strings"

	"github.com/google/uuid"
	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/cloud-controller/internal/lifecycle"
	"keelson.dev/services/cloud-controller/internal/local"
	"keelson.dev/services/cloud-controller/internal/node"
	"keelson.dev/services/cloud-controller/internal/provider"
	"keelson.dev/services/cloud-controller/internal/service"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/controller"
	"keelson.dev/services/internal/event"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/leader"
	"keelson.dev/services/internal/ops"
	"keelson.dev/services/internal/rpc"
	"keelson.dev/services/internal/telemetry"
)

const (
	name      = "cloud-controller"
	userAgent = "keelson-cloud-controller"
)

func main() {
	boot.Main(name, func(fs *pflag.FlagSet) boot.Run {
		o := newOptions(fs)
		return o.run
	})
}

// options are the flags.
type options struct {
	service     *boot.Service
	leaderElect bool
	cluster     string
	provider    string
	inventory   string
	addresses   string
	routes      bool
}

func newOptions(fs *pflag.FlagSet) *options {
	o := &options{service: boot.ServiceFlags(fs)}
	fs.BoolVar(&o.leaderElect, "leader-elect", false, "let one of several cloud-controllers work, by the Lease kube-system/cloud-controller")
	fs.StringVar(&o.cluster, "cluster-name", "keelson", "name of the cluster towards the provider")
	fs.StringVar(&o.provider, "provider", "local", "local, or host:port of a program that serves keelson.cloud.v1 with a certificate of the cluster's CA")
	fs.StringVar(&o.inventory, "local-inventory", "", "directory with a file NAME.json for each machine (provider local)")
	fs.StringVar(&o.addresses, "load-balancer-cidr", "", "range of the addresses of load balancers (provider local)")
	fs.BoolVar(&o.routes, "load-balancer-routes", true, "route load balancers' addresses to the nodes in this machine's network (provider local)")
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
	conn, err := rpc.Dial(id, o.service.APIServers, userAgent)
	if err != nil {
		return boot.Invalid("--apiserver: %w", err)
	}
	g.OnStop("connection", func(context.Context) error { return conn.Close() })
	instance := instanceName()
	tel, err := telemetry.Start(ctx, telemetry.Config{Service: name, Instance: instance, Conn: conn})
	if err != nil {
		return err
	}
	g.OnStop("telemetry", tel.Shutdown)
	status := ops.New()
	status.Registry().MustRegister(controller.Collectors()...)
	status.Ready("apiserver", rpc.Connected(conn))
	g.Go("operations listener", func(ctx context.Context) error { return status.Serve(ctx, o.service.OpsAddress) })

	c := client.New(conn, userAgent)
	caches := newCaches(c)
	cloud, err := o.cloud(g, id, caches)
	if err != nil {
		return err
	}
	events := event.NewRecorder(c, name, instance)
	g.Go("events", events.Run)
	g.Go("services", caches.Services.Run)
	g.Go("nodes", caches.Nodes.Run)
	g.Go("endpoint slices", caches.Slices.Run)
	for what, synced := range map[string]<-chan struct{}{"services": caches.Services.Synced(), "nodes": caches.Nodes.Synced(), "endpoint slices": caches.Slices.Synced()} {
		status.Ready(what, ops.ReadyWhen(synced))
	}

	work := func(ctx context.Context) error { return o.work(ctx, c, caches, cloud, events) }
	if !o.leaderElect {
		g.Go("controllers", work)
		return nil
	}
	state := &leader.State{}
	status.Note("leadership", state.String)
	g.Go("controllers", func(ctx context.Context) error {
		return leader.Run(ctx, c, leader.Config{Name: name, Identity: instance, State: state}, work)
	})
	return nil
}

// newCaches are what the controllers read, without what none of them does.
func newCaches(c *client.Client) service.Caches {
	return service.Caches{
		Services: client.NewCache(c, client.CacheOptions[*corev1.Service]{}),
		Nodes: client.NewCache(c, client.CacheOptions[*corev1.Node]{
			Transform: func(n *corev1.Node) *corev1.Node { n.ManagedFields, n.Status.Images = nil, nil; return n },
		}),
		Slices: client.NewCache(c, client.CacheOptions[*discoveryv1.EndpointSlice]{
			Indexes:   map[string]func(*discoveryv1.EndpointSlice) []string{service.ByService: service.SliceIndex},
			Transform: func(s *discoveryv1.EndpointSlice) *discoveryv1.EndpointSlice { s.ManagedFields = nil; return s },
		}),
	}
}

// background is a provider that has work of its own.
type background interface {
	// Begin forgets what another leader may have changed.
	Begin()
	Run(ctx context.Context) error
}

// cloud makes the provider.
func (o *options) cloud(g *boot.Group, id *identity.Source, caches service.Caches) (provider.Provider, error) {
	if o.provider != "local" {
		conn, err := rpc.Dial(id, []string{strings.TrimPrefix(o.provider, "grpc://")}, userAgent)
		if err != nil {
			return nil, boot.Invalid("--provider: %w", err)
		}
		g.OnStop("provider connection", func(context.Context) error { return conn.Close() })
		return provider.New(conn), nil
	}
	addresses, err := netip.ParsePrefix(o.addresses)
	if err != nil {
		return nil, boot.Invalid("--load-balancer-cidr: %w", err)
	}
	p, err := local.New(local.Config{
		Inventory: o.inventory, Cluster: o.cluster, Addresses: addresses, Unrouted: !o.routes, InUse: service.InUse(caches.Services),
	})
	if err != nil {
		return nil, boot.Invalid("provider local: %w", err)
	}
	g.OnStop("provider local", func(context.Context) error { p.Close(); return nil })
	return p, nil
}

// work is what the leader does.
func (o *options) work(ctx context.Context, c *client.Client, caches service.Caches, cloud provider.Provider, events *event.Recorder) error {
	defer events.Flush()
	for _, synced := range []<-chan struct{}{caches.Services.Synced(), caches.Nodes.Synced(), caches.Slices.Synced()} {
		select {
		case <-synced:
		case <-ctx.Done():
			return nil
		}
	}
	traced, own := cloud, background(nil)
	if b, ok := cloud.(background); ok {
		own = b
		own.Begin()
		traced = provider.Traced(cloud)
	}
	services := service.New(o.cluster, c, caches, traced, events)
	loops := []func(context.Context) error{
		services.RunOrphans,
		func(ctx context.Context) error {
			return controller.Run(ctx,
				node.New(c, caches.Nodes, traced, events).Controller(),
				lifecycle.New(c, caches.Nodes, traced, events).Controller(),
				services.Controller())
		},
	}
	if own != nil {
		loops = append(loops, own.Run)
	}
	return together(ctx, loops)
}

// together runs loops until ctx ends or one of them does, and waits for all.
func together(ctx context.Context, loops []func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan error, len(loops))
	for _, loop := range loops {
		go func() {
			defer cancel()
			results <- loop(ctx)
		}()
	}
	var first error
	for range loops {
		if err := <-results; err != nil && first == nil {
			first = err
		}
	}
	return first
}

func instanceName() string {
	host, err := os.Hostname()
	if err != nil {
		host = name
	}
	// A process number would be the same again in the next container of that name.
	return host + "_" + uuid.NewString()[:8]
}

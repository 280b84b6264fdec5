// Command cloud-controller connects a cluster to its cloud: it writes addresses, zone and
// provider id of each machine to its Node, deletes Nodes whose machine no longer exists,
// and gives Services of type LoadBalancer an address. The cloud is the provider in this
// program, or another program that serves keelson.cloud.v1. One of several processes
// works; the others keep their caches warm and take over within two seconds.
package main

import (
	"context"
	"net/netip"
	"strings"

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
	"keelson.dev/services/internal/ops"
	"keelson.dev/services/internal/rpc"
)

const (
	name      = "cloud-controller"
	userAgent = "keelson-cloud-controller"
)

func main() {
	boot.Main(name, func(fs *pflag.FlagSet) boot.Run { return newOptions(fs).run })
}

// options are the flags.
type options struct {
	service   *boot.Elected
	cluster   string
	provider  string
	inventory string
	addresses string
	routes    bool
}

func newOptions(fs *pflag.FlagSet) *options {
	o := &options{service: boot.ElectedFlags(fs, name)}
	fs.StringVar(&o.cluster, "cluster-name", "keelson", "name of the cluster in what the provider creates")
	fs.StringVar(&o.provider, "provider", "local", "local, or host:port of a program that serves keelson.cloud.v1 with a certificate of the cluster's CA")
	fs.StringVar(&o.inventory, "local-inventory", "", "directory with a file NAME.json for each machine (provider local)")
	fs.StringVar(&o.addresses, "load-balancer-cidr", "", "range of the addresses of load balancers (provider local)")
	fs.BoolVar(&o.routes, "load-balancer-routes", true, "route load balancers' addresses to the nodes in this machine's network (provider local)")
	return o
}

// run starts the service in order; the group stops it in reverse order.
func (o *options) run(ctx context.Context, g *boot.Group) error {
	svc, err := boot.StartElected(ctx, g, o.service, boot.Program{Name: name, UserAgent: userAgent})
	if err != nil {
		return err
	}
	svc.Status.Registry().MustRegister(controller.Collectors()...)
	caches := newCaches(svc.Client)
	cloud, err := o.cloud(g, svc.Identity, caches)
	if err != nil {
		return err
	}
	events := event.NewRecorder(svc.Client, name, svc.Instance)
	g.Go("events", events.Run)
	g.Go("services", caches.Services.Run)
	g.Go("nodes", caches.Nodes.Run)
	g.Go("endpoint slices", caches.Slices.Run)
	svc.Status.Ready("services", ops.ReadyWhen(caches.Services.Synced()))
	svc.Status.Ready("nodes", ops.ReadyWhen(caches.Nodes.Synced()))
	svc.Status.Ready("endpoint slices", ops.ReadyWhen(caches.Slices.Synced()))
	svc.Lead(g, func(ctx context.Context) error { return o.work(ctx, svc.Client, caches, cloud, events) })
	return nil
}

// newCaches returns the caches of the objects that the controllers read, without the
// fields that none of them reads.
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

// background is implemented by a provider that needs a loop of its own.
type background interface {
	// Begin drops state that another leader may have changed since.
	Begin()
	// Run works until ctx ends.
	Run(ctx context.Context) error
}

// cloud returns the provider that --provider names.
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

// work runs the controllers of one term of leadership, until ctx ends.
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

// together runs the loops until ctx or one of them ends, and returns the first error
// once all have ended.
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

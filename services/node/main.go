// Command node runs pods on a machine: the agent on a container runtime, the pod
// network, the service proxy and the cluster's DNS. It calls out only; apiservers
// reach it through the tunnel that it opens to each of them.
package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	nodev1 "keelson.dev/proto/keelson/node/v1"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/ops"
	"keelson.dev/services/internal/rpc"
	"keelson.dev/services/node/internal/agent"
	"keelson.dev/services/node/internal/cgroup"
	"keelson.dev/services/node/internal/cni"
	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/device"
	"keelson.dev/services/node/internal/dns"
	"keelson.dev/services/node/internal/event"
	"keelson.dev/services/node/internal/eviction"
	"keelson.dev/services/node/internal/fencing"
	"keelson.dev/services/node/internal/image"
	"keelson.dev/services/node/internal/join"
	"keelson.dev/services/node/internal/kubeletapi"
	"keelson.dev/services/node/internal/log"
	"keelson.dev/services/node/internal/manifest"
	"keelson.dev/services/node/internal/netcache"
	"keelson.dev/services/node/internal/pod"
	"keelson.dev/services/node/internal/podresources"
	"keelson.dev/services/node/internal/policy"
	"keelson.dev/services/node/internal/proxy"
	"keelson.dev/services/node/internal/registration"
	"keelson.dev/services/node/internal/shutdown"
	"keelson.dev/services/node/internal/simulated"
	"keelson.dev/services/node/internal/stream"
	"keelson.dev/services/node/internal/usage"
)

const (
	userAgent = "keelson-node"
	// simulatedHeartbeat is the kubelet's own interval: simulated nodes never die
	// of themselves, so nothing is gained by being quicker.
	simulatedHeartbeat = 10 * time.Second
)

func main() {
	boot.Main("node", func(fs *pflag.FlagSet) boot.Run {
		o := newOptions(fs)
		return o.run
	})
}

// run starts a node, in order; it goes down in the reverse.
func (o *options) run(ctx context.Context, g *boot.Group) error {
	switch {
	case o.cleanupLogs && o.dataDir == "":
		return boot.Invalid("--cleanup-logs needs the --data-dir of the node whose logs are to be removed")
	case o.cleanupLogs:
		return o.logs().Clear()
	case o.cleanup:
		return o.clean(ctx)
	}
	s, err := o.check()
	if err != nil {
		return err
	}
	if err := o.join(ctx, s); err != nil {
		return err
	}
	svc, err := boot.StartService(ctx, g, o.service, boot.Program{Name: "node", UserAgent: userAgent, Instance: o.name})
	if err != nil {
		return err
	}
	if o.simulated > 0 {
		return o.simulate(g, s, svc)
	}
	return o.node(g, s, svc)
}

// clean removes what a node leaves in a network when it stops, so that traffic goes
// on while the program restarts: links, routes and rules.
func (o *options) clean(ctx context.Context) error {
	pods, err := netip.ParsePrefix(o.podRange)
	if err != nil {
		return boot.Invalid("--cluster-cidr: %w", err)
	}
	return errors.Join(policy.Cleanup(ctx), proxy.Cleanup(ctx), dns.Cleanup(), cni.Cleanup(ctx, pods))
}

// join gets the node's first certificate, if it has none and a token to ask with.
func (o *options) join(ctx context.Context, s *settings) error {
	if s.bootstrap == "" || !join.Needed(o.service.Identity) {
		return nil
	}
	ca, err := os.ReadFile(o.caFile)
	if err != nil {
		return boot.Invalid("--ca-file: %w", err)
	}
	return join.Bootstrap{Node: o.name, Endpoints: o.service.APIServers, Token: s.bootstrap, CA: ca, Dir: o.service.Identity}.Run(ctx)
}

// simulate starts simulated nodes.
func (o *options) simulate(g *boot.Group, s *settings, svc *boot.Running) error {
	prefix := "simulated"
	if o.named() {
		prefix = o.name
	}
	sim := simulated.New(simulated.Config{
		Client: svc.Client, Nodes: o.simulated, Prefix: prefix, Labels: s.labels, Zones: o.simulatedZones,
		Taints: s.taints, Capacity: s.capacity, Heartbeat: simulatedHeartbeat,
	})
	g.Go("simulated nodes", sim.Run)
	svc.Status.Ready("simulated nodes", ops.ReadyWhen(sim.Ready()))
	return nil
}

// node starts a node with a container runtime.
func (o *options) node(g *boot.Group, s *settings, svc *boot.Running) error {
	id, c, status := svc.Identity, svc.Client, svc.Status
	runtime, err := cri.Dial(o.containerd)
	if err != nil {
		return boot.Invalid("--containerd: %w", err)
	}
	g.OnStop("container runtime", func(context.Context) error { return runtime.Close() })
	answers := ops.NewProbe(func(ctx context.Context) error { _, err := runtime.Version(ctx); return err })
	g.Go("readiness of the container runtime", answers.Run)
	status.Ready("containerd", answers.Check)
	machine, err := registration.ReadMachine(o.dataDir, s.policy.Reserved, o.maxPods, s.capacity)
	if err != nil {
		return fmt.Errorf("machine: %w", err)
	}
	cgroups, err := cgroup.Detect(o.cgroupRoot)
	if err != nil {
		return err
	}
	if err := cgroups.LimitPodPIDs(o.podMaxPIDs); err != nil {
		return boot.Invalid("--pod-max-pids: %w", err)
	}
	resolver, err := o.resolver()
	if err != nil {
		return err
	}
	events := event.NewRecorder(event.API{Client: c}, "kubelet", o.name)
	g.Go("events", events.Run)

	var pods *agent.Agent
	var node *registration.Registration
	devices, err := device.New(device.Config{
		Dir: filepath.Join(o.kubeletDir, "device-plugins"), Record: filepath.Join(o.dataDir, "devices.json"), Changed: func() { node.Poke() },
	})
	if err != nil {
		return err
	}
	var pressure *eviction.Loop
	var down *shutdown.Watcher
	health := registration.NewHealth(runtime, func() { pods.WakeAll() })
	images := image.NewCollector(runtime)
	node = registration.New(registration.Config{
		Name: o.name, Client: c, Machine: machine, Health: health, Labels: s.labels, Taints: s.taints,
		Address: s.address.String(), External: o.cloudProvider == "external", Images: images.Listed, Devices: devices.Capacity,
		Pressure:     func() []corev1.NodeConditionType { return pressure.Pressure() },
		ShuttingDown: func() bool { return down.Active() },
	})
	fencer, err := fencing.New(fencing.Config{
		Dir: filepath.Join(o.dataDir, "fencing"), Kill: cgroups.StopPod, Wake: func(types.UID) { go pods.WakeAll() },
	})
	if err != nil {
		return err
	}
	cache := netcache.New(c)
	policies := netcache.NewPolicies(c, cache.Nodes())
	enforcer := policy.New(policy.Config{Source: policies, Metrics: policy.NewMetrics(status.Registry())})
	hostPorts := cni.NewHostPorts()
	capacity := machine.Capacity[corev1.ResourceMemory]
	pods = agent.New(agent.Config{
		Node: o.name, Client: c, Runtime: runtime, DataDir: o.dataDir, Metrics: agent.NewMetrics(status.Registry()),
		Settings: pod.Settings{
			LogDir: o.podLogs, SeccompDir: filepath.Join(o.dataDir, "seccomp"),
			Resolver: resolver, MemoryCapacity: capacity.Value(), Unified: cgroups.Unified(),
		},
		ContainerLogDir: o.containerLogs,
		Cgroups:         cgroups, Events: events,
		HostIPs: node.HostIPs, Self: node.Node, Allocatable: machine.Allocatable, Fence: fencer, Devices: devices,
		Admit: func(p *corev1.Pod) *pod.Refusal {
			if r := down.Admit(p); r != nil {
				return r
			}
			return pressure.Admit(p)
		},
		Services: cache.Services, ServicesSynced: cache.Synced(),
		NetworkReady: health.NetworkReady, Features: health.Features,
		HostPorts: hostPorts.Set, KnownHostPorts: hostPorts.Replace, Policies: enforcer,
		Begin:  func(sandboxes map[string]bool) { o.reclaim(sandboxes) },
		Static: o.staticPods(),
	})
	g.Go("fencing", fencer.Run)
	meter := usage.New(usage.Config{
		Groups: cgroups, Runtime: runtime, Pods: pods.Active, Dir: o.dataDir,
		LogDir:  func(p *corev1.Pod) string { return filepath.Join(o.podLogs, pod.LogFolder(p)) },
		Volumes: pods.VolumePaths,
	})
	pressure = eviction.New(eviction.Config{
		Node: o.name, Policy: s.policy, Agent: pods, Memory: cgroups, Limit: o.podsMemory(machine),
		Disk: eviction.DiskMeter{Machine: meter.Machine, Read: meter.Read, Data: o.dataDir, Images: meter.Images},
		Reclaim: func(ctx context.Context) error {
			return errors.Join(pods.RemoveEnded(ctx), images.RemoveUnused(ctx))
		},
		Events: events, Metrics: eviction.NewMetrics(status.Registry()),
	})
	down = shutdown.New(shutdown.Config{
		Node: o.name, Agent: pods, Grace: o.shutdownGrace, Critical: o.shutdownCritical, Events: events, Changed: node.Poke,
	})
	if o.shutdownGrace > 0 {
		g.Go("shutdown", down.Run)
	}
	g.Go("certificate", join.Renewal{
		Node: o.name, Client: c, Dir: o.service.Identity,
		Leaf: func() *x509.Certificate { return id.Current().Certificate.Leaf },
	}.Run)
	g.Go("runtime health", health.Run)
	g.Go("images", images.Run)
	g.Go("registration", node.Run)
	heartbeat := registration.NewHeartbeat(c, o.name, node.Node, o.heartbeat)
	heartbeat.SetFence(fencer)
	g.Go("heartbeat", heartbeat.Run)
	g.Go("network cache", cache.Run)
	g.Go("policy cache", policies.Run)
	g.Go("network policies", enforcer.Run)
	proxyMetrics, dnsMetrics := proxy.NewMetrics(status.Registry()), dns.NewMetrics(status.Registry())
	g.Go("pod network", func(ctx context.Context) error { return o.podNetwork(ctx, s, node, cache, hostPorts) })
	g.Go("proxy", func(ctx context.Context) error {
		return proxy.Run(ctx, proxy.Config{
			Node: proxy.Node{
				Name: o.name, Addresses: []netip.Addr{s.address}, ClusterCIDR: s.pods, ServiceCIDR: s.services, NodeLocal: []netip.Addr{s.dns},
			},
			Source: cache, Zone: func() string { return cache.Zone(o.name) }, Metrics: proxyMetrics,
		})
	})
	g.Go("dns", func(ctx context.Context) error {
		return dns.Run(ctx, dns.Config{
			Source: cache, Metrics: dnsMetrics, Namespace: pods.NamespaceAt, ListenIP: s.dns, Domain: o.clusterDomain, ResolvConf: o.resolvConf, ClusterCIDR: s.pods, ServiceCIDR: s.services,
		})
	})
	g.Go("device plug-ins", devices.Run)
	g.Go("pod resources", (&podresources.Server{Socket: filepath.Join(o.kubeletDir, "pod-resources", "kubelet.sock"), Pods: pods.Active, Devices: devices}).Run)
	status.Health("agent", pods.Check)
	status.Health("registration", node.Check)
	g.Go("agent", pods.Run)
	g.Go("usage", meter.Run)
	g.Go("eviction", pressure.Run)
	reads := kubeletapi.New(o.readAPI(s, meter, pods, answers.Check, status.Registry()))
	g.Go("read API", reads.Run)
	g.Go("tunnel", func(ctx context.Context) error {
		for node.Node() == nil { // apiservers take nobody else's
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(50 * time.Millisecond):
			}
		}
		return stream.Run(ctx, stream.Config{
			Node: o.name, Endpoints: o.service.APIServers, Welcome: heartbeat.SetInterval,
			Dial: func(endpoint string) (*grpc.ClientConn, error) {
				return rpc.Dial(id, []string{endpoint}, userAgent)
			},
			Certificate: func() *x509.Certificate { return id.Current().Certificate.Leaf },
			Handler: &stream.Backend{
				Runtime: runtime, Pod: pods.Find, API: reads.Dial,
				Usage: func(ctx context.Context, maxAge time.Duration) (*nodev1.Usage, error) {
					report, err := meter.Read(ctx, usage.Want{MaxAge: maxAge})
					if err != nil {
						return nil, err
					}
					return report.Message(), nil
				},
			},
		})
	})
	status.Ready("pods", ops.ReadyWhen(pods.Pods().Synced()))
	return nil
}

// readAPI returns what the read API of the node shows.
func (o *options) readAPI(s *settings, meter *usage.Meter, pods *agent.Agent, healthy ops.Check, metrics prometheus.Gatherer) kubeletapi.Config {
	logs := o.logs()
	configuration := map[string]any{
		"kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
		"cgroupRoot": o.cgroupRoot, "clusterDNS": o.clusterDNS, "clusterDomain": o.clusterDomain,
		"containerRuntimeEndpoint": o.containerd, "maxPods": o.maxPods, "podLogsDir": o.podLogs, "resolvConf": o.resolvConf,
		"enforceNodeAllocatable": o.enforce, "podPidsLimit": o.podMaxPIDs,
	}
	maps.Copy(configuration, s.policy.Configuration())
	return kubeletapi.Config{
		Node: o.name, Meter: meter, Pods: pods.Pods().List, Healthy: healthy, Metrics: metrics,
		LogDir: logs.Pods, LogFolders: logs.Folders,
		Configuration: configuration,
	}
}

// podsMemory returns how much memory all pods together may use, in bytes; 0 means any.
func (o *options) podsMemory(m *registration.Machine) int64 {
	if o.enforce[0] == "none" {
		return 0
	}
	memory := m.Capacity[corev1.ResourceMemory]
	return memory.Value()
}

// podNetwork configures the pod network once the node has its range, and keeps
// it.
func (o *options) podNetwork(ctx context.Context, s *settings, node *registration.Registration, cache *netcache.Set, hostPorts *cni.HostPorts) error {
	var podCIDR netip.Prefix
	for {
		if n := node.Node(); n != nil && n.Spec.PodCIDR != "" {
			var err error
			if podCIDR, err = netip.ParsePrefix(n.Spec.PodCIDR); err != nil {
				return fmt.Errorf("node %s: podCIDR: %w", o.name, err)
			}
			break
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
	}
	slog.InfoContext(ctx, "pod range assigned", "node", o.name, "range", podCIDR.String())
	if err := cni.Configure(cni.Config{Dir: o.cniConfDir, DataDir: o.networkDir(), PodCIDR: podCIDR, MTU: o.mtu}); err != nil {
		return err
	}
	return cni.Run(ctx, cni.RunConfig{
		NodeName: o.name, NodeIP: s.address, PodCIDR: podCIDR, ClusterCIDR: s.pods, ServiceCIDR: s.services,
		Masquerade: true, Nodes: cache.Nodes(), HostPorts: hostPorts,
	})
}

// logs is where the logs of the node's pods lie.
func (o *options) logs() log.Layout {
	return log.Layout{Pods: o.podLogs, Containers: o.containerLogs, Ledger: filepath.Join(o.dataDir, "log")}
}

func (o *options) networkDir() string { return filepath.Join(o.dataDir, "network") }

// staticPods is the source of static pods, or nil.
func (o *options) staticPods() agent.Source {
	if o.manifests == "" {
		return nil
	}
	return manifest.Dir{Path: o.manifests, Node: o.name}
}

// reclaim frees addresses of sandboxes that are gone.
func (o *options) reclaim(sandboxes map[string]bool) {
	if n, err := cni.Reclaim(o.networkDir(), sandboxes); err != nil {
		slog.WarnContext(context.Background(), "addresses were not reclaimed", "error", err)
	} else if n > 0 {
		slog.InfoContext(context.Background(), "addresses reclaimed", "count", n)
	}
}

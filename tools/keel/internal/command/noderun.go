package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"

	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/hostnet"
	"keelson.dev/tools/keel/internal/machine"
	"keelson.dev/tools/keel/internal/process"
	"keelson.dev/tools/keel/internal/runtime"
	"keelson.dev/tools/keel/internal/supervise"
)

// nodeRunOptions are the flags of keel node run.
type nodeRunOptions struct {
	name             string
	apiservers       []string
	nodes            string
	pki              string
	images           string
	inventory        string
	zones            []string
	pods, services   string
	dns, domain      string
	prepared, region string
}

// exitCode makes keel exit with a code without printing anything, because the program that
// ended has done so.
type exitCode int

func (c exitCode) Error() string { return "exit code " + strconv.Itoa(int(c)) }

// nodeRun runs a node in the container whose first process it is.
func (e *env) nodeRun() *cobra.Command {
	o := nodeRunOptions{}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run a node in this container: containerd and the agent",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			e.logText()
			if o.prepared != "" {
				return e.runNode(cmd.Context(), &o)
			}
			if problems := validation.IsDNS1123Subdomain(o.name); len(problems) > 0 {
				return usageError{fmt.Errorf("--name %q: %s", o.name, problems[0])}
			}
			// Check this before anything else, because a conflict would make later steps hang.
			if err := machine.CheckRanges(map[string]string{"--cluster-cidr": o.pods, "--service-cluster-ip-range": o.services}); err != nil {
				return err
			}
			code, err := machine.Init(cmd.Context(), o.name, o.nodes, e.home, append(os.Args[1:], "--prepared", o.name))
			if err != nil || code == 0 {
				return err
			}
			return exitCode(code)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.apiservers, "apiserver", nil, "`host:port` of the apiservers' gRPC ports")
	f.StringVar(&o.name, "name", "", "the node's `name`")
	f.StringVar(&o.nodes, "nodes", "/nodes", "`directory` that contains the node's own directory, NAME, which outlives its containers")
	f.StringVar(&o.pki, "pki", "/pki", "`directory` with ca.crt and bootstrap-token, for joining")
	f.StringVar(&o.images, "images", "/images", "`directory` of image archives to import, including those that are added later")
	f.StringVar(&o.inventory, "inventory", "", "`directory` in which this machine registers for a cloud-controller's local provider; empty: do not register")
	f.StringSliceVar(&o.zones, "zones", []string{"zone-a", "zone-b", "zone-c"}, "failure `domains` over which nodes are spread by their number")
	f.StringVar(&o.region, "region", "local", "`region` of the node")
	f.StringVar(&o.pods, "cluster-cidr", "10.244.0.0/16", "`range` of the pods' addresses")
	f.StringVar(&o.services, "service-cluster-ip-range", "10.96.0.0/16", "`range` of the Services' addresses")
	f.StringVar(&o.dns, "cluster-dns", "", "`address` of the cluster's DNS; empty: the tenth of the Services' range")
	f.StringVar(&o.domain, "cluster-domain", "cluster.local", "`domain` of the cluster")
	f.StringVar(&o.prepared, "prepared", "", "`name` of the node for which the container is prepared")
	if err := errors.Join(cmd.MarkFlagRequired("apiserver"), cmd.MarkFlagRequired("name"), f.MarkHidden("prepared")); err != nil {
		panic(err)
	}
	return cmd
}

// runNode runs a node in a prepared container until ctx ends.
func (e *env) runNode(ctx context.Context, o *nodeRunOptions) error {
	name := o.prepared
	if o.dns == "" {
		base, err := netip.ParsePrefix(o.services)
		if err != nil {
			return usageError{fmt.Errorf("--service-cluster-ip-range: %w", err)}
		}
		o.dns = tenth(base)
	}
	ip, err := ownAddress()
	if err != nil {
		return err
	}
	i, _ := strconv.ParseUint(name[strings.LastIndexByte(name, '-')+1:], 10, 31)
	node := cluster.Node{Name: name, IP: ip, Zone: o.zones[int(i)%len(o.zones)]}
	c := &cluster.Cluster{
		Home: e.home, ID: "container",
		ClusterCIDR: o.pods, ServiceCIDR: o.services, ClusterDNS: o.dns, Domain: o.domain,
		Joined: &cluster.Joined{GRPC: strings.Join(o.apiservers, ","), NodeIP: ip},
		Nodes:  []cluster.Node{node},
	}
	specs, err := o.specs(c, node)
	if err != nil {
		return err
	}
	// The addresses of load balancers have firewall rules of their own and are not among the
	// node's ranges.
	if err := hostnet.Block(c.ClusterCIDR, c.ServiceCIDR); err != nil {
		return err
	}
	if o.inventory != "" {
		if err := announce(o.inventory, node, o.region); err != nil {
			return fmt.Errorf("inventory: %w", err)
		}
	}
	return o.serve(ctx, c, node, specs)
}

// specs returns the specifications of the node's two processes: containerd, then the agent.
func (o *nodeRunOptions) specs(c *cluster.Cluster, node cluster.Node) ([]supervise.Spec, error) {
	for _, d := range []string{"run", "log", filepath.Join("pki", node.Name), "volumes"} {
		if err := os.MkdirAll(c.Path(d), 0o711); err != nil {
			return nil, err
		}
	}
	// All processes that ran here ended with their container, so their state is stale.
	if err := errors.Join(os.RemoveAll(c.Path("nodes", node.Name, "containerd", "state")), os.RemoveAll(c.Path("run"))); err != nil {
		return nil, err
	}
	for _, copied := range []struct{ from, to string }{
		{"ca.crt", c.Path("pki", "ca.crt")},
		{"bootstrap-token", c.Path("pki", "bootstrap-token")},
	} {
		data, err := os.ReadFile(filepath.Join(o.pki, copied.from))
		if err != nil {
			return nil, fmt.Errorf("--pki: %w", err)
		}
		if err := cluster.WriteFile(copied.to, data, 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(c.Path("run"), 0o700); err != nil {
		return nil, err
	}
	specs, err := process.Specs(c, "/usr/bin", runtime.Programs{
		Containerd: "/usr/bin/containerd", Ctr: "/usr/bin/ctr", Runc: "/usr/bin/runc", Dir: "/usr/bin", CNI: "/usr/lib/cni",
		// It logs the same warnings at each start, about features that nodes do not use.
		LogLevel: "error",
	})
	if err != nil {
		return nil, err
	}
	for i := range specs {
		specs[i].Log = "/proc/self/fd/2" // the container's
		specs[i].Cgroup = ""             // they end with the container
	}
	agent := &specs[1]
	agent.Args = append(agent.Args, "--cgroup-root", "/keelson", "--zone", node.Zone, "--region", o.region, "--cloud-provider", "")
	if o.inventory != "" {
		agent.Args = append(agent.Args, "--cloud-provider", "external")
	}
	if address := os.Getenv("KEELSON_OPS_ADDRESS"); address != "" {
		agent.Args = append(agent.Args, "--ops-address", address)
	}
	for _, limit := range machine.Capacity() {
		agent.Args = append(agent.Args, "--capacity", limit)
	}
	return specs, nil
}

// serve keeps both processes running until ctx ends, then stops them and the pods.
func (o *nodeRunOptions) serve(ctx context.Context, c *cluster.Cluster, node cluster.Node, specs []supervise.Spec) error {
	if err := dir(c).WriteSpecs(specs[:1]); err != nil {
		return err
	}
	server := supervise.NewServer(dir(c), runtime.StopSandboxes)
	ended := make(chan error, 1)
	go func() { ended <- server.Run(context.WithoutCancel(ctx)) }()
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	imported := make(chan error, 1)
	go func() { imported <- o.follow(work, c, node, specs) }()
	var failed error
	select {
	case err := <-ended:
		return fmt.Errorf("supervisor: %w", err)
	case failed = <-imported:
	}
	cancel()
	grace, done := context.WithTimeout(context.WithoutCancel(ctx), 60*time.Second)
	defer done()
	return errors.Join(failed, dir(c).Stop(grace), <-ended)
}

// follow starts the agent as soon as containerd has the sandbox image, then imports the
// archives that appear in the directory of images, until ctx ends.
func (o *nodeRunOptions) follow(ctx context.Context, c *cluster.Cluster, node cluster.Node, specs []supervise.Spec) error {
	progs := runtime.Programs{Ctr: "/usr/bin/ctr"}
	load := func(ctx context.Context, file string) ([]string, error) {
		return runtime.Import(ctx, progs, c, node.Name, file)
	}
	if err := runtime.WaitReady(ctx, runtime.Socket(c, node.Name)); err != nil {
		return ended(ctx, err)
	}
	if _, err := load(ctx, "/usr/share/keelson/pause.tar"); err != nil {
		return ended(ctx, err)
	}
	if err := dir(c).WriteSpecs(specs); err != nil {
		return err
	}
	if err := dir(c).Reload(ctx); err != nil {
		return ended(ctx, err)
	}
	(&machine.Images{Dir: o.images, Marks: c.Path("nodes", node.Name, "containerd"), Import: load}).Run(ctx)
	return nil
}

// tenth returns the tenth address after the first of a Services' range, at which the cluster's
// DNS answers.
func tenth(services netip.Prefix) string {
	a := services.Masked().Addr()
	for range 10 {
		a = a.Next()
	}
	return a.String()
}

// ended returns err, or nil if ctx has ended.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// announce writes this machine's entry into the inventory of a cloud of containers.
func announce(inventory string, n cluster.Node, region string) error {
	data, err := json.MarshalIndent(instance{
		Name: n.Name, ProviderID: "local://" + n.Name, Zone: n.Zone, Region: region, InstanceType: "container",
		Addresses: []address{{"InternalIP", n.IP}, {"Hostname", n.Name}},
	}, "", "  ")
	if err != nil {
		return err
	}
	return cluster.WriteFile(filepath.Join(inventory, n.Name+".json"), data, 0o644)
}

// ownAddress returns the container's first IPv4 address that other machines can reach.
func ownAddress() (string, error) {
	links, err := net.Interfaces()
	if err != nil {
		return "", err
	}
	for _, l := range links {
		if l.Flags&net.FlagUp == 0 || l.Flags&net.FlagLoopback != 0 {
			continue
		}
		addresses, err := l.Addrs()
		if err != nil {
			return "", err
		}
		for _, a := range addresses {
			if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
				return n.IP.String(), nil
			}
		}
	}
	return "", errors.New("this container has no IPv4 address other than loopback")
}

// Package process defines the processes of a cluster and how each is started. It is the only
// place that knows the services' flags.
package process

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"keelson.dev/tools/internal/pki"
	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/runtime"
	"keelson.dev/tools/keel/internal/supervise"
	"keelson.dev/tools/keel/internal/sweep"
)

// This is the order in which processes are stopped: the clients of a service stop before it.
const (
	stopNode = iota
	stopContainerd
	stopController
	stopAPI
)

// Simulator is the identity of the process that simulates nodes. It is allowed everything, so
// it is created only if there are simulated nodes.
const Simulator = "simulator"

// Identities returns the certificates that the cluster's processes and its administrator need.
func Identities(c *cluster.Cluster) ([]pki.Identity, error) {
	api := []string{"localhost", "127.0.0.1", c.Gateway()}
	for _, m := range c.Members {
		if m.IP != c.Gateway() {
			api = append(api, m.IP)
		}
	}
	ids, err := ControlPlane(api, c.ServiceCIDR, c.Domain)
	if err != nil {
		return nil, err
	}
	if c.Simulated > 0 {
		ids = append(ids, SimulatorIdentity())
	}
	for _, n := range c.Nodes {
		ids = append(ids, pki.Identity{
			Name: n.Name, CommonName: "system:node:" + n.Name, Organization: []string{"system:nodes"}, Hosts: []string{n.Name, n.IP},
		})
	}
	return ids, nil
}

// SimulatorIdentity returns the certificate of the process that simulates nodes.
func SimulatorIdentity() pki.Identity {
	return pki.Identity{Name: Simulator, CommonName: "system:keelson:simulator", Organization: []string{"system:masters"}}
}

// ControlPlane returns the certificates that the control plane's services and the administrator
// need. hosts are the names and addresses of the apiservers, besides the names that pods use and
// the address of the Service kubernetes, the first of serviceCIDR.
func ControlPlane(hosts []string, serviceCIDR, domain string) ([]pki.Identity, error) {
	services, err := netip.ParsePrefix(serviceCIDR)
	if err != nil {
		return nil, fmt.Errorf("range of Services: %w", err)
	}
	return []pki.Identity{
		{Name: "apiserver", CommonName: "kube-apiserver", Organization: []string{"system:masters"}, Hosts: append(slices.Clone(hosts),
			services.Masked().Addr().Next().String(), "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc."+domain,
		)},
		{Name: "scheduler", CommonName: "system:kube-scheduler", Hosts: []string{"localhost"}},
		{Name: "controller-manager", CommonName: "system:kube-controller-manager", Hosts: []string{"localhost"}},
		{Name: "cloud-controller", CommonName: "system:cloud-controller-manager", Hosts: []string{"localhost"}},
		{Name: "admin", CommonName: "kubernetes-admin", Organization: []string{"system:masters"}},
	}, nil
}

// Specs returns the specifications of the cluster's processes. bin is the directory of the
// programs.
func Specs(c *cluster.Cluster, bin string, p runtime.Programs) ([]supervise.Spec, error) {
	var specs []supervise.Spec
	if c.Joined == nil {
		specs = append(specs, controlPlane(c, bin)...)
	}
	for _, n := range c.Nodes {
		config, err := runtime.Configure(c, p, n.Name)
		if err != nil {
			return nil, err
		}
		specs = append(specs, containerd(c, p, n, config), node(c, bin, p, n))
	}
	if c.Simulated > 0 {
		spec := service(c, bin, "node", Simulator, "simulator", stopNode,
			"--apiserver", c.GRPC(), "--simulated", fmt.Sprint(c.Simulated), "--data-dir", c.Path("simulator"))
		specs = append(specs, spec)
	}
	for i := range specs {
		specs[i].Env = append(specs[i].Env, sweep.Variable+"="+c.ID)
		specs[i].Cgroup = c.ProcessCgroup(specs[i].Name)
	}
	return specs, digests(specs)
}

func controlPlane(c *cluster.Cluster, bin string) []supervise.Spec {
	var specs []supervise.Spec
	if len(c.Members) == 0 {
		specs = append(specs, apiserver(c, bin, "apiserver-0", []string{"127.0.0.1", c.Gateway()}, c.Gateway(), "127.0.0.1"))
	}
	for _, m := range c.Members {
		specs = append(specs, apiserver(c, bin, m.Name, []string{m.IP}, m.IP, m.IP, members(c, m)...))
	}
	if len(c.Members) > 0 {
		specs = append(specs, balancers(c, bin)...)
	}
	elected := func(program string, args ...string) {
		args = append([]string{"--apiserver", c.GRPC()}, args...)
		if len(c.Members) == 0 {
			specs = append(specs, service(c, bin, program, program, program, stopController, args...))
			return
		}
		for i := range candidates {
			specs = append(specs, service(c, bin, program, program, fmt.Sprintf("%s-%d", program, i), stopController, args...))
		}
	}
	elected("scheduler")
	elected("controller-manager",
		"--cluster-ca", c.Path("pki"),
		"--service-account-key", c.Path("pki", "sa.key"),
		"--cluster-cidr", c.ClusterCIDR,
		"--local-volume-dir", c.Path("volumes"))
	elected("cloud-controller",
		"--cluster-name", c.ID,
		"--provider", "local",
		"--local-inventory", c.Path("cloud", "instances"),
		"--load-balancer-cidr", c.LoadBalancerCIDR())
	return specs
}

// candidates is the number of processes of each elected service if there are several
// apiservers: one leads, the other is on standby.
const candidates = 2

// apiserver returns the specification of an apiserver. It listens on hosts, none of which is
// reachable from other networks. advertise is its address for pods, shown its address for
// people.
func apiserver(c *cluster.Cluster, bin, name string, hosts []string, advertise, shown string, more ...string) supervise.Spec {
	listen := func(port int) string {
		var all []string
		for _, h := range hosts {
			all = append(all, fmt.Sprintf("%s:%d", h, port))
		}
		return strings.Join(all, ",")
	}
	spec := service(c, bin, "apiserver", "apiserver", name, stopAPI, append([]string{
		"--name", name,
		"--data-dir", c.Path(name),
		"--listen-https", listen(c.HTTPSPort),
		"--listen-grpc", listen(c.GRPCPort),
		"--advertise-address", advertise,
		"--service-account-key", c.Path("pki", "sa.key"),
		"--service-account-issuer", "https://kubernetes.default.svc." + c.Domain,
		"--service-cluster-ip-range", c.ServiceCIDR,
		"--default-not-ready-toleration-seconds", "30",
		"--default-unreachable-toleration-seconds", "30",
	}, more...)...)
	spec.GRPC, spec.HTTPS = fmt.Sprintf("%s:%d", shown, c.GRPCPort), fmt.Sprintf("%s:%d", shown, c.HTTPSPort)
	return spec
}

// members returns the flags with which one of several apiservers finds the others.
func members(c *cluster.Cluster, self cluster.Member) []string {
	if self.Client {
		return []string{"--member=false", "--join", self.Join, "--join-token-file", JoinToken(c)}
	}
	own := []string{
		"--listen-peer", fmt.Sprintf("%s:%d", self.IP, cluster.PeerPort),
		"--etcd-listen-peer", fmt.Sprintf("%s:%d", self.IP, cluster.EtcdPort),
	}
	if self.Join != "" {
		return append(own, "--join", self.Join, "--join-token-file", JoinToken(c))
	}
	var all, etcd []string
	for _, m := range c.Founders {
		all = append(all, fmt.Sprintf("%s=%s:%d", m.Name, m.IP, cluster.PeerPort))
		etcd = append(etcd, fmt.Sprintf("%s=%s:%d", m.Name, m.IP, cluster.EtcdPort))
	}
	return append(own, "--members", strings.Join(all, ","), "--etcd-members", strings.Join(etcd, ","))
}

// JoinToken returns the path of the file with the token with which the newest member joined.
func JoinToken(c *cluster.Cluster) string { return c.Path("pki", "join-token") }

// balancers returns the processes that make several apiservers reachable at one address. There
// are two, so that one is running while the other restarts.
func balancers(c *cluster.Cluster, bin string) (specs []supervise.Spec) {
	var backends []string
	for _, m := range c.Members {
		backends = append(backends, fmt.Sprintf("%s:%d", m.IP, c.HTTPSPort))
	}
	share := func(i int) string { return c.Path("run", fmt.Sprintf("balancer-%d.listener", i)) }
	for i := range 2 {
		name := fmt.Sprintf("balancer-%d", i)
		specs = append(specs, supervise.Spec{
			Name: name,
			Args: []string{filepath.Join(bin, "keel"), "balance", "--listen", c.HTTPS(),
				"--to", strings.Join(backends, ","), "--ca", c.Path("pki", "ca.crt"),
				"--share", share(i), "--with", share(1 - i)},
			Log:       c.Path("log", name+".log"),
			StopOrder: stopController,
			// Probing the address would not do: the other balancer accepts there too, and may
			// be stopped as soon as this one is reported healthy.
			Socket: share(i),
		})
	}
	return specs
}

// serviceFlags are the flags that service sets.
var serviceFlags = []string{"--identity", "--ops-address", "--log-format", "--otlp-endpoint"}

// service returns what the specifications of Keelson's own programs have in common. name
// distinguishes processes of one program, which may share an identity.
func service(c *cluster.Cluster, bin, program, identity, name string, order int, args ...string) supervise.Spec {
	health := c.Path("run", name+".ops")
	all := append([]string{filepath.Join(bin, program),
		"--identity", c.Identity(identity), "--ops-address", "unix://" + health, "--log-format", "text"}, args...)
	if c.OTLPEndpoint != "" {
		all = append(all, "--otlp-endpoint", c.OTLPEndpoint)
	}
	return supervise.Spec{
		Name: name, Args: all, Log: c.Path("log", name+".log"), StopOrder: order, Health: health,
	}
}

func containerd(c *cluster.Cluster, p runtime.Programs, n cluster.Node, config string) supervise.Spec {
	return supervise.Spec{
		Name:      "containerd-" + n.Name,
		Args:      []string{p.Containerd, "--config", config},
		Env:       []string{"PATH=" + p.Dir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		Namespace: namespace(c, n),
		Log:       c.Path("log", "containerd-"+n.Name+".log"),
		StopOrder: stopContainerd,
		Socket:    runtime.Socket(c, n.Name),
	}
}

// namespace returns the network namespace of a node's processes. A joined node has the whole
// machine and runs in the host's network.
func namespace(c *cluster.Cluster, n cluster.Node) string {
	if c.Joined != nil {
		return ""
	}
	return c.Namespace(n.Name)
}

// nodeFlag matches a flag of the node service, without dashes.
var nodeFlag = regexp.MustCompile(`^([a-z][a-z0-9-]*)(=.*)?$`)

// CheckNodeFlag returns an error if a flag ("name=value") cannot be given to nodes in addition
// to those that keel sets. "" is no flag.
func CheckNodeFlag(flag string) error {
	if flag == "" {
		return nil
	}
	m := nodeFlag.FindStringSubmatch(flag)
	if m == nil {
		return errors.New("expected name=value, such as pod-max-pids=1000")
	}
	taken := append(nodeArgs(&cluster.Cluster{Joined: &cluster.Joined{}}, runtime.Programs{}, cluster.Node{}), serviceFlags...)
	// It would be no node, or keel delete would not find the logs of its pods.
	taken = append(taken, "--simulated", "--cleanup", "--cleanup-logs", "--pod-logs-dir", "--container-logs-dir")
	if m[1] != "disk-reserve" && slices.Contains(taken, "--"+m[1]) {
		return fmt.Errorf("keel needs %s itself", m[1])
	}
	return nil
}

func node(c *cluster.Cluster, bin string, p runtime.Programs, n cluster.Node) supervise.Spec {
	spec := service(c, bin, "node", n.Name, n.Name, stopNode, nodeArgs(c, p, n)...)
	spec.Namespace = namespace(c, n)
	spec.Sandboxes = runtime.Socket(c, n.Name)
	return spec
}

// nodeArgs returns the flags of a node.
func nodeArgs(c *cluster.Cluster, p runtime.Programs, n cluster.Node) []string {
	args := []string{
		"--apiserver", c.NodeGRPC(),
		"--node-name", n.Name,
		"--node-ip", n.IP,
		"--data-dir", c.Path("nodes", n.Name, "agent"),
		"--kubelet-dir", c.Path("nodes", n.Name, "kubelet"),
		"--containerd", "unix://" + runtime.Socket(c, n.Name),
		"--cni-bin-dir", p.CNI,
		"--cni-conf-dir", c.Path("nodes", n.Name, "cni"),
		"--cgroup-root", c.CgroupRoot(n.Name),
		"--cluster-dns", c.ClusterDNS,
		"--cluster-domain", c.Domain,
		"--cluster-cidr", c.ClusterCIDR,
		"--service-cluster-ip-range", c.ServiceCIDR,
		"--cloud-provider", "external",
		// The disk is shared with the rest of the machine.
		"--disk-reserve", "1Gi",
	}
	if c.Joined != nil {
		args = append(args, "--bootstrap-token-file", c.Path("pki", "bootstrap-token"), "--ca-file", c.Path("pki", "ca.crt"))
	}
	for _, f := range c.NodeFlags {
		args = append(args, "--"+f)
	}
	return args
}

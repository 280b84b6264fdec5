package process

import (
	"slices"
	"strings"
	"testing"

	"keelson.dev/tools/internal/pki"
	"keelson.dev/tools/keel/internal/cluster"
	"keelson.dev/tools/keel/internal/runtime"
)

// The health of each of the two balancers is probed at a socket that only it serves, because
// the other one serves their common address while it starts.
func TestEachBalancerIsAskedItself(t *testing.T) {
	specs := balancers(&cluster.Cluster{Home: t.TempDir(), Members: []cluster.Member{{Name: "apiserver-0", IP: "192.0.2.1"}}}, "/bin")
	for i, s := range specs {
		at := slices.Index(s.Args, "--share")
		if at < 0 || s.Args[at+1] != s.Socket || s.Health != "" {
			t.Errorf("%s is probed at %q: %v", s.Name, s.Socket, s.Args)
		}
		if other := specs[1-i].Socket; other == s.Socket {
			t.Errorf("both are probed at %s", other)
		}
	}
}

// A single apiserver listens on loopback and the cluster's bridge; each of several apiservers
// listens on its own address. None listens on all addresses.
func TestWhereApiserversListen(t *testing.T) {
	one := &cluster.Cluster{Home: t.TempDir(), Subnet: 7, HTTPSPort: 6443, GRPCPort: 6444}
	several := &cluster.Cluster{Home: t.TempDir(), Subnet: 7, HTTPSPort: 6443, GRPCPort: 6444, Members: []cluster.Member{{Name: "apiserver-0", IP: "10.89.7.2"}}}
	for c, want := range map[*cluster.Cluster][2]string{
		one:     {"127.0.0.1:6443,10.89.7.1:6443", "127.0.0.1:6444,10.89.7.1:6444"},
		several: {"10.89.7.2:6443", "10.89.7.2:6444"},
	} {
		args := controlPlane(c, "/bin")[0].Args
		for i, flag := range []string{"--listen-https", "--listen-grpc"} {
			if at := slices.Index(args, flag); at < 0 || args[at+1] != want[i] {
				t.Errorf("%s: %v, want %s", flag, args, want[i])
			}
		}
	}
}

// TestSimulatorOnlyWhereItIsUsed checks that the simulator's certificate, which is allowed
// everything, exists only if there are simulated nodes.
func TestSimulatorOnlyWhereItIsUsed(t *testing.T) {
	for simulated, want := range map[int]bool{0: false, 5: true} {
		c := &cluster.Cluster{Home: t.TempDir(), Simulated: simulated, ServiceCIDR: "10.96.0.0/16", Domain: "cluster.local"}
		ids, err := Identities(c)
		if err != nil {
			t.Fatal(err)
		}
		got := slices.ContainsFunc(ids, func(id pki.Identity) bool { return id.Name == Simulator })
		if got != want {
			t.Errorf("%d simulated nodes: certificate %t, want %t", simulated, got, want)
		}
	}
}

// The apiserver's certificate is valid for the address of the Service kubernetes, which the
// apiserver takes from the same range.
func TestServiceAddressIsInTheCertificate(t *testing.T) {
	for cidr, want := range map[string]string{
		"10.96.0.0/16": "10.96.0.1", "10.96.7.3/16": "10.96.0.1", "10.96.0.128/25": "10.96.0.129", "fd00:10::/108": "fd00:10::1",
	} {
		ids, err := ControlPlane(nil, cidr, "cluster.local")
		if err != nil || !slices.Contains(ids[0].Hosts, want) {
			t.Errorf("%s: got %v, %v; want the host %s", cidr, ids, err, want)
		}
	}
	for _, cidr := range []string{"", "nonsense", "10.96.0.0"} {
		if _, err := ControlPlane(nil, cidr, "cluster.local"); err == nil {
			t.Errorf("%q: no error", cidr)
		}
	}
}

// TestNodeFlags checks that flags of nodes are passed on, and that those that keel sets are
// refused.
func TestNodeFlags(t *testing.T) {
	for flag, want := range map[string]string{
		"": "", "pod-max-pids=100": "", "disk-reserve=5%": "", "cleanup": "itself",
		"--pod-max-pids=100": "expected name=value", "=1": "expected name=value", "a b": "expected name=value",
		"data-dir=/": "keel needs data-dir itself", "pod-logs-dir=/x": "itself", "bootstrap-token-file=/x": "itself", "identity=/x": "itself", "ops-address=:80": "itself",
	} {
		err := CheckNodeFlag(flag)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", flag, err, want)
		}
	}
	c := &cluster.Cluster{Home: t.TempDir(), NodeFlags: []string{"pod-max-pids=100"}}
	spec := node(c, "/bin", runtime.Programs{}, cluster.Node{Name: "node-0"})
	if !slices.Contains(spec.Args, "--pod-max-pids=100") {
		t.Errorf("arguments: %v", spec.Args)
	}
	// Whatever keel sets for every service is refused for nodes.
	set := service(c, "/bin", "node", "node-0", "node-0", stopNode)
	for _, a := range set.Args[1:] {
		if strings.HasPrefix(a, "--") && !slices.Contains(serviceFlags, a) {
			t.Errorf("%s is not in serviceFlags", a)
		}
	}
}

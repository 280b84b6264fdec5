package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/node/internal/nettest"

	"keelson.dev/services/internal/pacetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pluginDir is the directory of Debian's containernetworking-plugins.
const pluginDir = "/usr/lib/cni"

// node is a machine that runs the pod network.
type node struct {
	t         *testing.T
	name      string
	addr      netip.Addr
	cidr      netip.Prefix
	ns        *nettest.NS
	conf      Config
	hostPorts *HostPorts
	applied   chan error
}

// cluster holds the Nodes, and creates machines that watch them.
type cluster struct {
	t *testing.T
	c *client.Client
}

func newCluster(t *testing.T) *cluster { return &cluster{t: t, c: clienttest.Start(t)} }

func (c *cluster) node(name string, net *nettest.Net, addr string, index byte) *node {
	c.t.Helper()
	n := &node{
		t: c.t, name: name, addr: netip.MustParseAddr(addr), cidr: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, index, 0}), 24),
		hostPorts: NewHostPorts(), applied: make(chan error, 1000),
	}
	n.ns = net.Machine(name, n.addr)
	dir := c.t.TempDir()
	n.conf = Config{Dir: filepath.Join(dir, "net.d"), DataDir: filepath.Join(dir, "data"), PodCIDR: n.cidr}
	if err := Configure(n.conf); err != nil {
		c.t.Fatal(err)
	}
	n.hostPorts.Replace(nil)
	_, err := client.For[*corev1.Node](c.c).Create(c.t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.NodeSpec{PodCIDR: n.cidr.String()},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr}}},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

// run starts the pod network on a machine. stop stops it early.
func (c *cluster) run(n *node) (stop func()) {
	c.t.Helper()
	nodes := client.NewCache(c.c, client.CacheOptions[*corev1.Node]{})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = nodes.Run(ctx) })
	wg.Add(1)
	n.ns.Go(func() {
		defer wg.Done()
		err := Run(ctx, RunConfig{
			NodeName: n.name, NodeIP: n.addr, PodCIDR: n.cidr, Masquerade: true, Nodes: nodes, HostPorts: n.hostPorts,
			ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"), ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"),
			applied: func(err error) { n.applied <- err },
		})
		if err != nil {
			c.t.Errorf("pod network of %s: %v", n.name, err)
		}
	})
	stop = func() { cancel(); wg.Wait() }
	c.t.Cleanup(stop)
	n.wait()
	return stop
}

// wait waits for a pass without an error.
func (n *node) wait() {
	n.t.Helper()
	deadline := time.After(time.Minute)
	var last error
	for {
		select {
		case last = <-n.applied:
			if last == nil {
				return
			}
		case <-deadline:
			n.t.Fatalf("the pod network of %s is not up: %v", n.name, last)
		}
	}
}

// pod creates a pod with the real plugins, as a container runtime does.
func (n *node) pod(name string) (*nettest.NS, netip.Addr) {
	n.t.Helper()
	pod := nettest.New(n.t, name)
	b, err := os.ReadFile(filepath.Join(n.conf.Dir, fileName))
	if err != nil {
		n.t.Fatal(err)
	}
	var list struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	if err := json.Unmarshal(b, &list); err != nil {
		n.t.Fatal(err)
	}
	plugin := list.Plugins[0]
	plugin["cniVersion"], plugin["name"] = list.CNIVersion, list.Name
	stdin, _ := json.Marshal(plugin)
	call := func(command string) []byte {
		var out []byte
		n.ns.Must(func() error {
			cmd := exec.Command(filepath.Join(pluginDir, plugin["type"].(string)))
			cmd.Env = []string{"CNI_COMMAND=" + command, "CNI_CONTAINERID=" + name, "CNI_NETNS=" + pod.Path(), "CNI_IFNAME=eth0", "CNI_PATH=" + pluginDir}
			cmd.Stdin = bytes.NewReader(stdin)
			var err error
			if out, err = cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", command, err, out)
			}
			return nil
		})
		return out
	}
	var result struct{ IPs []struct{ Address string } }
	if err := json.Unmarshal(call("ADD"), &result); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { call("DEL") })
	addr := netip.MustParsePrefix(result.IPs[0].Address).Addr()
	pod.Serve("tcp", 8080)
	pod.Serve("udp", 8080)
	return pod, addr
}

func call(t *testing.T, from *nettest.NS, network string, addr netip.Addr, port uint16) nettest.Answer {
	t.Helper()
	a, err := from.Call(network, netip.AddrPortFrom(addr, port))
	if err != nil {
		t.Fatalf("%s → %s:%d/%s: %v", from.Name, addr, port, network, err)
	}
	return a
}

func expect(t *testing.T, from *nettest.NS, addr netip.Addr, port uint16, server string, caller netip.Addr) {
	t.Helper()
	for _, network := range []string{"tcp", "udp"} {
		if a := call(t, from, network, addr, port); a.Server != server || a.Caller.Addr() != caller {
			t.Errorf("%s → %s:%d/%s: answered by %s, which saw %s; want %s and %s", from.Name, addr, port, network, a.Server, a.Caller.Addr(), server, caller)
		}
	}
}

// moment bounds an attempt that is repeated, or that is expected to fail.
const moment = 2 * time.Second

// eventually polls for at most a minute.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
		<-tick.C
	}
}

func bridged(t *testing.T) *nettest.Net {
	return nettest.NewNet(t, netip.MustParsePrefix("10.89.0.0/24"))
}

func TestPodNetwork(t *testing.T) {
	t.Parallel()
	net, c := bridged(t), newCluster(t)
	one, two := c.node("node-1", net, "10.89.0.11", 1), c.node("node-2", net, "10.89.0.12", 2)
	c.run(one)
	c.run(two)
	a, addrA := one.pod("pod-a")
	b, addrB := one.pod("pod-b")
	d, addrD := two.pod("pod-d")
	if !one.cidr.Contains(addrA) || !two.cidr.Contains(addrD) {
		t.Fatalf("pods got %s and %s", addrA, addrD)
	}
	net.Host.Serve("tcp", 9000)
	net.Host.Serve("udp", 9000)
	two.ns.Serve("tcp", 9000)
	two.ns.Serve("udp", 9000)

	// Pods see each other's own addresses, on the same node and across nodes.
	expect(t, a, addrB, 8080, "pod-b", addrA)
	expect(t, a, addrD, 8080, "pod-d", addrA)
	expect(t, d, addrA, 8080, "pod-a", addrD)
	// A node reaches pods, and pods reach nodes with their own addresses.
	expect(t, one.ns, addrA, 8080, "pod-a", netip.AddrFrom4([4]byte{10, 244, 1, 1}))
	expect(t, one.ns, addrD, 8080, "pod-d", one.addr)
	expect(t, b, two.addr, 9000, "node-2", addrB)
	// Outside the cluster, a pod appears with its node's address.
	host := netip.MustParseAddr("10.89.0.1")
	expect(t, a, host, 9000, "host", one.addr)
	// An unused pod address is unreachable at once. The best of a few attempts counts,
	// because the machine may stall during one of them.
	pace := pacetest.Start(t)
	soonest := time.Hour
	for attempts := 0; attempts < 5 && soonest > time.Second; attempts++ {
		start := time.Now()
		_, err := a.Call("tcp", netip.MustParseAddrPort("10.244.77.7:80"))
		if err == nil {
			t.Fatal("an unused address answers")
		}
		soonest = min(soonest, pace.Since(start))
	}
	if soonest > time.Second {
		t.Errorf("an unused address: error only after %v", soonest)
	}

	// The route to a removed Node is removed.
	if err := client.For[*corev1.Node](c.c).Delete(t.Context(), "", "node-2"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the route to node-2's pods is removed", func() bool {
		return !strings.Contains(one.ns.Run("ip", "route", "show", "proto", "75"), "10.244.2.0/24")
	})
	call(t, a, "tcp", addrB, 8080)
}

func TestOverlayBetweenNetworks(t *testing.T) {
	t.Parallel()
	near, far, c := bridged(t), nettest.NewNet(t, netip.MustParsePrefix("10.88.0.0/24")), newCluster(t)
	one, two := c.node("node-1", near, "10.89.0.11", 1), c.node("node-2", far, "10.88.0.12", 2)
	near.Join(far, []*nettest.NS{one.ns}, []*nettest.NS{two.ns})
	stop := c.run(one)
	c.run(two)
	a, addrA := one.pod("pod-a")
	d, addrD := two.pod("pod-d")
	expect(t, a, addrD, 8080, "pod-d", addrA)
	expect(t, d, addrA, 8080, "pod-a", addrD)
	stop()
	one.ns.Must(func() error { return Cleanup(context.Background(), netip.MustParsePrefix("10.244.0.0/16")) })
	if out := one.ns.Run("ip", "-br", "link"); strings.Contains(out, "keelson") {
		t.Errorf("interfaces left behind:\n%s", out)
	}
}

func TestHostPorts(t *testing.T) {
	t.Parallel()
	net, c := bridged(t), newCluster(t)
	one := c.node("node-1", net, "10.89.0.11", 1)
	c.run(one)
	a, addrA := one.pod("pod-a")
	b, addrB := one.pod("pod-b")
	one.hostPorts.Set("uid-a", []HostPort{
		{Protocol: "TCP", HostPort: 7000, Target: netip.AddrPortFrom(addrA, 8080)},
		{Protocol: "UDP", HostPort: 7000, Target: netip.AddrPortFrom(addrA, 8080)},
	})
	one.hostPorts.Set("uid-b", []HostPort{
		{Protocol: "tcp", HostIP: one.addr, HostPort: 7001, Target: netip.AddrPortFrom(addrB, 8080)},
		{HostPort: 7000, Target: netip.AddrPortFrom(addrB, 8080)}, // already taken by pod-a
	})
	eventually(t, "host ports open", func() bool {
		_, err1 := net.Host.CallWithin(moment, "udp", netip.AddrPortFrom(one.addr, 7000))
		_, err2 := net.Host.CallWithin(moment, "tcp", netip.AddrPortFrom(one.addr, 7001))
		return err1 == nil && err2 == nil
	})
	outside := netip.MustParseAddr("10.89.0.1")
	expect(t, net.Host, one.addr, 7000, "pod-a", outside)
	if got := call(t, b, "tcp", one.addr, 7000); got.Server != "pod-a" || got.Caller.Addr() != addrB {
		t.Errorf("pod-b → host port of pod-a: %+v", got)
	}
	if got := call(t, a, "tcp", one.addr, 7000); got.Server != "pod-a" {
		t.Errorf("pod-a → its own host port: %+v", got)
	}
	if got := call(t, one.ns, "tcp", one.addr, 7001); got.Server != "pod-b" {
		t.Errorf("node → host port: %+v", got)
	}
	// The node's loopback address forwards as well, but only for the node itself.
	for _, network := range []string{"tcp", "udp"} {
		if got := call(t, one.ns, network, netip.MustParseAddr("127.0.0.1"), 7000); got.Server != "pod-a" {
			t.Errorf("loopback → host port: %+v", got)
		}
	}
	one.ns.Serve("tcp", 7777)
	net.Host.Run("sysctl", "-q", "net.ipv4.conf.all.route_localnet=1")
	net.Host.Run("ip", "route", "del", "local", "127.0.0.0/8", "dev", "lo", "table", "local")
	net.Host.Run("ip", "route", "add", "127.0.0.2/32", "via", one.addr.String(), "src", outside.String())
	attack := func() error {
		c, err := net.Host.DialFrom(moment, "tcp", netip.AddrPortFrom(outside, 0), netip.MustParseAddrPort("127.0.0.2:7777"))
		if err == nil {
			c.Close()
		}
		return err
	}
	if err := attack(); err == nil {
		t.Error("a neighbour reached the node's loopback")
	}
	one.hostPorts.Set("uid-a", nil)
	eventually(t, "pod-b inherits the port", func() bool {
		got, err := net.Host.CallWithin(moment, "tcp", netip.AddrPortFrom(one.addr, 7000))
		return err == nil && got.Server == "pod-b"
	})
	one.hostPorts.Replace(nil)
	eventually(t, "host ports close", func() bool {
		_, err := net.Host.CallWithin(moment, "tcp", netip.AddrPortFrom(one.addr, 7001))
		return nettest.Refused(err)
	})
}

// TestHostPortsOutliveARestart checks that the host ports of running pods stay open while a
// restarted node does not know its pods yet.
func TestHostPortsOutliveARestart(t *testing.T) {
	t.Parallel()
	net, c := bridged(t), newCluster(t)
	one := c.node("node-1", net, "10.89.0.11", 1)
	stop := c.run(one)
	_, addr := one.pod("pod-a")
	ports := map[string][]HostPort{"uid-a": {{Protocol: "TCP", HostPort: 7000, Target: netip.AddrPortFrom(addr, 8080)}}}
	one.hostPorts.Replace(ports)
	open := func() bool {
		got, err := net.Host.CallWithin(moment, "tcp", netip.AddrPortFrom(one.addr, 7000))
		return err == nil && got.Server == "pod-a"
	}
	eventually(t, "the host port is open", open)
	stop()
	one.hostPorts, one.applied = NewHostPorts(), make(chan error, 1000)
	c.run(one)
	if rules := one.ns.Run("nft", "list", "map", "ip", TableName, "hostports"); !strings.Contains(rules, ": "+addr.String()+" . 8080") {
		t.Errorf("the restarted node closed the host port:\n%s", rules)
	}
	one.hostPorts.Set("uid-b", nil)
	one.hostPorts.Replace(ports)
	one.wait()
	eventually(t, "the host port is open after the restart", open)
	one.hostPorts.Replace(nil)
	eventually(t, "the host port is closed", func() bool { return !open() })
}

// wait makes iptables wait for its lock, which all network namespaces share.
var wait = [...]string{"-w", "60"}

// dockerRules is what Docker puts into the filter table.
var dockerRules = [][]string{
	{"-P", "FORWARD", "DROP"},
	{"-N", "DOCKER-USER"},
	{"-A", "DOCKER-USER", "-j", "RETURN"},
	{"-A", "FORWARD", "-j", "DOCKER-USER"},
}

func TestBesideDocker(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"iptables-nft", "iptables-legacy"} {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			net, c := bridged(t), newCluster(t)
			one, two := c.node("node-1", net, "10.89.0.11", 1), c.node("node-2", net, "10.89.0.12", 2)
			for _, rule := range dockerRules {
				one.ns.Run(program, append(wait[:], rule...)...)
			}
			stop := c.run(one)
			c.run(two)
			a, addrA := one.pod("pod-a")
			_, addrB := one.pod("pod-b")
			d, addrD := two.pod("pod-d")
			expect(t, a, addrB, 8080, "pod-b", addrA)
			expect(t, a, addrD, 8080, "pod-d", addrA)
			expect(t, d, addrB, 8080, "pod-b", addrD)
			listing := one.ns.Run(program, append(wait[:], "-S", "DOCKER-USER")...)
			if strings.Count(listing, firewallComment) != 3 || !strings.HasSuffix(listing, "-A DOCKER-USER -j RETURN\n") {
				t.Errorf("rules in DOCKER-USER:\n%s", listing)
			}
			if program == "iptables-nft" {
				// Another program empties the chain: the rules are restored at once.
				one.ns.Run(program, "-F", "DOCKER-USER")
				eventually(t, "the rules are back", func() bool {
					return strings.Count(one.ns.Run(program, "-S", "DOCKER-USER"), firewallComment) == 3
				})
				expect(t, a, addrD, 8080, "pod-d", addrA)
			}
			stop()
			one.ns.Must(func() error { return Cleanup(context.Background(), netip.MustParsePrefix("10.244.0.0/16")) })
			if out := one.ns.Run(program, append(wait[:], "-S")...); strings.Contains(out, "keelson") {
				t.Errorf("rules left behind:\n%s", out)
			}
		})
	}
}

// TestBesideAFirewall checks that with a firewall other than Docker's the rules are added at
// the head of FORWARD.
func TestBesideAFirewall(t *testing.T) {
	t.Parallel()
	net, c := bridged(t), newCluster(t)
	one, two := c.node("node-1", net, "10.89.0.11", 1), c.node("node-2", net, "10.89.0.12", 2)
	one.ns.Run("iptables-nft", "-A", "FORWARD", "-j", "REJECT")
	c.run(one)
	c.run(two)
	a, addrA := one.pod("pod-a")
	_, addrD := two.pod("pod-d")
	expect(t, a, addrD, 8080, "pod-d", addrA)
	if out := two.ns.Run("iptables-nft", "-S"); strings.Contains(out, "keelson") {
		t.Errorf("rules where nothing is dropped:\n%s", out)
	}
}

func TestRulesAreRepaired(t *testing.T) {
	t.Parallel()
	net, c := bridged(t), newCluster(t)
	one := c.node("node-1", net, "10.89.0.11", 1)
	c.run(one)
	a, _ := one.pod("pod-a")
	net.Host.Serve("tcp", 9000)
	one.ns.Run("nft", "flush", "ruleset")
	eventually(t, "masquerading is back", func() bool {
		got, err := a.CallWithin(moment, "tcp", netip.MustParseAddrPort("10.89.0.1:9000"))
		return err == nil && got.Caller.Addr() == one.addr
	})
}

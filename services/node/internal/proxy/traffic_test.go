package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/nettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is two nodes with two pods each, another host, and a proxy on each node.
type rig struct {
	t       *testing.T
	net     *nettest.Net
	nodes   []*nettest.NS
	pods    []*nettest.NS // pod-a, pod-b on node-1; pod-c, pod-d on node-2
	sources []*table
	applied []chan Applied
}

var (
	podAddrs  = []string{"10.244.1.2", "10.244.1.3", "10.244.2.2", "10.244.2.3"}
	endpoints = []string{"10.244.1.2@node-1", "10.244.1.3@node-1", "10.244.2.2@node-2", "10.244.2.3@node-2"}
)

func nodeAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 89, 0, byte(11 + i)}) }

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, net: nettest.NewNet(t, netip.MustParsePrefix("10.89.0.0/24"))}
	for i := range 2 {
		node := r.net.Machine(fmt.Sprintf("node-%d", i+1), nodeAddr(i))
		r.nodes = append(r.nodes, node)
		gateway := netip.AddrFrom4([4]byte{10, 244, byte(i + 1), 1})
		for j := range 2 {
			addr := netip.MustParseAddr(podAddrs[2*i+j])
			pod := node.Pod("pod-"+string(rune('a'+2*i+j)), addr, gateway)
			pod.Serve("tcp", 8080)
			pod.Serve("udp", 8080)
			r.pods = append(r.pods, pod)
		}
		// The pods answer the host, but the host has no route to pods: a packet that is not
		// translated gets no answer.
		for other := range 2 {
			if other != i {
				node.Route(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(other + 1), 0}), 24), nodeAddr(other))
			}
		}
		node.Run("ip", "route", "add", "10.96.0.0/16", "dev", "eth0", "scope", "link", "src", nodeAddr(i).String())
	}
	for i := range 2 {
		r.start(i)
	}
	return r
}

func (r *rig) start(i int) {
	source := newTable()
	applied := make(chan Applied, 1000)
	node := testNode()
	node.Name, node.Addresses = fmt.Sprintf("node-%d", i+1), []netip.Addr{nodeAddr(i)}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Add(1)
	r.nodes[i].Go(func() {
		defer wg.Done()
		if err := Run(ctx, Config{Node: node, Source: source, Applied: func(a Applied) { applied <- a }}); err != nil {
			r.t.Errorf("proxy on %s: %v", node.Name, err)
		}
	})
	r.t.Cleanup(func() { cancel(); wg.Wait() })
	r.sources = append(r.sources, source)
	r.applied = append(r.applied, applied)
	r.wait(i)
}

func (r *rig) wait(i int) Applied {
	r.t.Helper()
	select {
	case a := <-r.applied[i]:
		return a
	case <-time.After(time.Minute):
		r.t.Fatal("the proxy applied no change")
		return Applied{}
	}
}

// set adds a Service on both nodes and waits until both have applied it.
func (r *rig) set(svc *corev1.Service, eps ...string) {
	r.t.Helper()
	for i := range r.sources {
		r.sources[i].set(svc, slice(svc, 8080, eps...))
		r.wait(i)
	}
}

func (r *rig) ask(from *nettest.NS, network, to string) nettest.Answer {
	r.t.Helper()
	a, err := from.Call(network, netip.MustParseAddrPort(to))
	if err != nil {
		r.t.Fatalf("%s → %s/%s: %v\n%s", from.Name, network, to, err, r.nodes[0].Run("nft", "list", "table", "ip", TableName))
	}
	return a
}

// spread connects until every expected server has answered, and fails if any other answers.
func (r *rig) spread(from *nettest.NS, network, to string, servers ...string) {
	r.t.Helper()
	want := map[string]bool{}
	for _, s := range servers {
		want[s] = true
	}
	seen := map[string]bool{}
	for i := 0; i < 400 && (len(seen) < len(want) || i < 8); i++ {
		a := r.ask(from, network, to)
		if !want[a.Server] {
			r.t.Fatalf("%s → %s answered by %s, want one of %v", from.Name, to, a.Server, servers)
		}
		seen[a.Server] = true
	}
	if len(seen) != len(want) {
		r.t.Fatalf("%s → %s answered by %v only, want all of %v", from.Name, to, seen, servers)
	}
}

func (r *rig) refused(from *nettest.NS, network, to string) {
	r.t.Helper()
	_, err := from.Call(network, netip.MustParseAddrPort(to))
	if !nettest.Refused(err) {
		r.t.Fatalf("%s → %s/%s: want a refusal, got %v", from.Name, network, to, err)
	}
}

func (r *rig) silent(from *nettest.NS, network, to string) {
	r.t.Helper()
	a, err := from.CallWithin(2*time.Second, network, netip.MustParseAddrPort(to))
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		r.t.Fatalf("%s → %s/%s: want silence, got %v %v", from.Name, network, to, a, err)
	}
}

var allPods = []string{"pod-a", "pod-b", "pod-c", "pod-d"}

func TestClusterIP(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, p := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		svc := service("web", "10.96.0.100", protocol(p))
		r.set(svc, endpoints...)
		network := map[corev1.Protocol]string{corev1.ProtocolTCP: "tcp", corev1.ProtocolUDP: "udp"}[p]
		// From a pod (also to itself and to its neighbour), and from a node.
		r.spread(r.pods[0], network, "10.96.0.100:80", allPods...)
		r.spread(r.nodes[0], network, "10.96.0.100:80", allPods...)
		r.refused(r.pods[0], network, "10.96.0.100:81")
		r.refused(r.nodes[0], network, "10.96.0.100:81")
		r.refused(r.pods[0], network, "10.96.7.7:80")
	}
}

func TestSourceIsKeptInsideTheCluster(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.set(service("web", "10.96.0.100"), endpoints[2])
	if a := r.ask(r.pods[0], "tcp", "10.96.0.100:80"); a.Caller.Addr().String() != podAddrs[0] {
		t.Errorf("server saw %s, want the calling pod", a.Caller)
	}
	if a := r.ask(r.nodes[0], "tcp", "10.96.0.100:80"); a.Caller.Addr() != nodeAddr(0) {
		t.Errorf("server saw %s, want the calling node", a.Caller)
	}
	// A pod that reaches itself must not see its own address as the client's.
	r.set(service("web", "10.96.0.100"), endpoints[0])
	if a := r.ask(r.pods[0], "tcp", "10.96.0.100:80"); a.Server != "pod-a" || a.Caller.Addr().String() == podAddrs[0] {
		t.Errorf("hairpin: %+v", a)
	}
}

func TestNodePort(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	svc := service("web", "10.96.0.100", nodePort(30080))
	r.set(svc, endpoints...)
	for i := range 2 {
		to := netip.AddrPortFrom(nodeAddr(i), 30080).String()
		r.spread(r.net.Host, "tcp", to, allPods...)
		r.spread(r.pods[0], "tcp", to, allPods...)
		r.spread(r.nodes[0], "tcp", to, allPods...)
	}
	if a := r.ask(r.net.Host, "tcp", "10.89.0.11:30080"); a.Caller.Addr().String() == "10.89.0.1" {
		t.Errorf("policy Cluster: server saw %s, want a node or gateway", a.Caller)
	}
	r.refused(r.net.Host, "tcp", "10.89.0.11:30081")

	svc = service("web", "10.96.0.100", nodePort(30080), externalLocal)
	r.set(svc, endpoints[0], endpoints[1])
	r.spread(r.net.Host, "tcp", "10.89.0.11:30080", "pod-a", "pod-b")
	if a := r.ask(r.net.Host, "tcp", "10.89.0.11:30080"); a.Caller.Addr().String() != "10.89.0.1" {
		t.Errorf("policy Local: server saw %s, want the host", a.Caller)
	}
	// The other node has no endpoint: no answer from outside, service from inside.
	r.silent(r.net.Host, "tcp", "10.89.0.12:30080")
	r.spread(r.nodes[1], "tcp", "10.89.0.12:30080", "pod-a", "pod-b")
	r.spread(r.pods[2], "tcp", "10.89.0.12:30080", "pod-a", "pod-b")
}

func TestLoadBalancerAndExternalIPs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, p := range []string{"10.90.0.5/32", "10.90.0.6/32"} {
		r.net.Host.Route(netip.MustParsePrefix(p), nodeAddr(0))
	}
	svc := service("web", "10.96.0.100", loadBalancer(30080, "10.90.0.5"), func(s *corev1.Service) {
		s.Spec.ExternalIPs = []string{"10.90.0.6"}
	})
	r.set(svc, endpoints...)
	r.spread(r.net.Host, "tcp", "10.90.0.5:80", allPods...)
	r.spread(r.net.Host, "tcp", "10.90.0.6:80", allPods...)
	r.spread(r.pods[3], "tcp", "10.90.0.5:80", allPods...)

	svc = svc.DeepCopy()
	svc.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24", "10.244.1.2/32"}
	r.set(svc, endpoints...)
	r.silent(r.net.Host, "tcp", "10.90.0.5:80")
	r.spread(r.pods[0], "tcp", "10.90.0.5:80", allPods...)
	r.spread(r.net.Host, "tcp", "10.90.0.6:80", allPods...) // source ranges apply only to the load balancer's addresses

	svc = service("web", "10.96.0.100", loadBalancer(30080, "10.90.0.5"), externalLocal)
	r.set(svc, endpoints[1], endpoints[2])
	r.spread(r.net.Host, "tcp", "10.90.0.5:80", "pod-b")
	if a := r.ask(r.net.Host, "tcp", "10.90.0.5:80"); a.Caller.Addr().String() != "10.89.0.1" {
		t.Errorf("policy Local: server saw %s, want the host", a.Caller)
	}
}

func TestNoEndpoints(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	svc := service("web", "10.96.0.100", nodePort(30080))
	r.set(svc)
	r.refused(r.pods[0], "tcp", "10.96.0.100:80")
	r.refused(r.nodes[0], "tcp", "10.96.0.100:80")
	r.refused(r.net.Host, "tcp", "10.89.0.11:30080")
	r.set(service("udp", "10.96.0.101", protocol(corev1.ProtocolUDP)))
	r.refused(r.pods[0], "udp", "10.96.0.101:80")
	// The Service works once it has an endpoint.
	r.set(svc, endpoints[3])
	r.spread(r.pods[0], "tcp", "10.96.0.100:80", "pod-d")
}

func TestInternalTrafficPolicyLocal(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.set(service("web", "10.96.0.100", internalLocal), endpoints[1])
	r.spread(r.pods[0], "tcp", "10.96.0.100:80", "pod-b")
	r.silent(r.pods[2], "tcp", "10.96.0.100:80")
}

func TestSessionAffinity(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.set(service("web", "10.96.0.100", sticky(600)), endpoints...)
	first := r.ask(r.pods[0], "tcp", "10.96.0.100:80").Server
	for range 20 {
		if a := r.ask(r.pods[0], "tcp", "10.96.0.100:80"); a.Server != first {
			t.Fatalf("a client of %s was served by %s", first, a.Server)
		}
	}
	// The table is replaced, as when the program restarts: the client stays with its
	// endpoint.
	for range 5 {
		r.nodes[0].Run("nft", "add", "chain", "ip", TableName, "foreign")
		if a := r.wait(0); !a.Full {
			t.Fatalf("%+v", a)
		}
		if a := r.ask(r.pods[0], "tcp", "10.96.0.100:80"); a.Server != first {
			t.Fatalf("after a replacement a client of %s was served by %s", first, a.Server)
		}
	}
	// The endpoint is removed: the client gets another one and stays with it.
	var rest []string
	for i, e := range endpoints {
		if allPods[i] != first {
			rest = append(rest, e)
		}
	}
	r.set(service("web", "10.96.0.100", sticky(600)), rest...)
	second := r.ask(r.pods[0], "tcp", "10.96.0.100:80").Server
	if second == first {
		t.Fatalf("still served by %s, which was removed", first)
	}
	for range 20 {
		if a := r.ask(r.pods[0], "tcp", "10.96.0.100:80"); a.Server != second {
			t.Fatalf("a client of %s was served by %s", second, a.Server)
		}
	}
}

// TestUDPFlowsFollowEndpoints checks that a UDP client that keeps sending from one port
// follows the endpoints.
func TestUDPFlowsFollowEndpoints(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	svc := service("udp", "10.96.0.101", protocol(corev1.ProtocolUDP))
	r.set(svc, endpoints[0])
	c, err := r.pods[1].Dial("udp", netip.MustParseAddrPort("10.96.0.101:80"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	expect := func(server string) {
		t.Helper()
		deadline := time.Now().Add(time.Minute)
		for {
			a, err := nettest.Ask(c)
			if err == nil && a.Server == server {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("answered by %q (%v), want %s", a.Server, err, server)
			}
		}
	}
	expect("pod-a")
	r.set(svc, endpoints[2])
	expect("pod-c")
	// No endpoint for a while, then one again: the flow to the Service's own address must
	// not remain.
	r.set(svc)
	_, _ = nettest.Ask(c)
	r.set(svc, endpoints[3])
	expect("pod-d")
}

// TestRollingUpdateLosesNoConnection checks that clients never fail and established
// connections continue while old endpoints terminate and new ones are added.
func TestRollingUpdateLosesNoConnection(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	svc := service("web", "10.96.0.100")
	r.set(svc, endpoints[0], endpoints[2])
	kept, err := r.pods[1].Dial("tcp", netip.MustParseAddrPort("10.96.0.100:80"))
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	old, err := nettest.Ask(kept)
	if err != nil {
		t.Fatal(err)
	}

	stop := make(chan struct{})
	var calls, failures atomic.Int64
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				n := calls.Add(1)
				if _, err := r.pods[1].Call("tcp", netip.MustParseAddrPort("10.96.0.100:80")); err != nil {
					failures.Add(1)
					t.Errorf("call %d: %v", n, err)
				}
			}
		})
	}
	changes := 0
	for changes < 160 || calls.Load() < 100 && changes < 10_000 {
		r.set(svc, endpoints[0]+"-", endpoints[1], endpoints[2])
		r.set(svc, endpoints[1], endpoints[2]+"-", endpoints[3])
		r.set(svc, endpoints[1]+"-", endpoints[3]+"-")
		r.set(svc, endpoints[0], endpoints[2])
		changes += 4
	}
	close(stop)
	wg.Wait()
	t.Logf("%d calls during %d changes, %d failed", calls.Load(), changes, failures.Load())
	if calls.Load() < 100 {
		t.Errorf("only %d calls were made", calls.Load())
	}
	if a, err := nettest.Ask(kept); err != nil || a.Server != old.Server {
		t.Errorf("the established connection: %+v %v, want it still served by %s", a, err, old.Server)
	}
	// Terminating endpoints get no new connections.
	r.set(svc, endpoints[0]+"-", endpoints[1])
	r.spread(r.pods[1], "tcp", "10.96.0.100:80", "pod-b")
}

func TestForeignChangesAreRepaired(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.set(service("web", "10.96.0.100"), endpoints...)
	for _, damage := range [][]string{
		{"delete", "element", "ip", TableName, mapIPs, "{ 10.96.0.100 . tcp . 80 }"},
		{"flush", "chain", "ip", TableName, "services"},
		{"delete", "table", "ip", TableName},
		{"flush", "ruleset"},
	} {
		r.nodes[0].Run("nft", damage...)
		if a := r.wait(0); !a.Full {
			t.Errorf("nft %v: repaired by %+v, want the table replaced", damage, a)
		}
		r.spread(r.pods[0], "tcp", "10.96.0.100:80", allPods...)
	}
	// The proxy's own changes are not taken for foreign ones, and neither are changes to
	// other tables.
	r.nodes[0].Run("nft", "add", "table", "ip", "unrelated")
	r.set(service("web", "10.96.0.100"), endpoints[0])
	select {
	case a := <-r.applied[0]:
		t.Errorf("a sync without a cause: %+v", a)
	case <-time.After(300 * time.Millisecond):
	}
}

func TestCleanup(t *testing.T) {
	t.Parallel()
	ns := nettest.New(t, "node")
	ns.Must(func() error {
		if err := Cleanup(context.Background()); err != nil {
			return fmt.Errorf("without a table: %w", err)
		}
		s, err := newRealSyncer()
		if err != nil {
			return err
		}
		if _, err := s.sync(context.Background(), newTable(), nil); err != nil {
			return err
		}
		return Cleanup(context.Background())
	})
	if out := ns.Run("nft", "list", "ruleset"); out != "" {
		t.Errorf("rules left behind:\n%s", out)
	}
}

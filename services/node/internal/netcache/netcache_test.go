package netcache_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	mdns "github.com/miekg/dns"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/node/internal/cni"
	"keelson.dev/services/node/internal/dns"
	"keelson.dev/services/node/internal/netcache"
	"keelson.dev/services/node/internal/nettest"
	"keelson.dev/services/node/internal/proxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	pods     = netip.MustParsePrefix("10.244.0.0/16")
	services = netip.MustParsePrefix("10.96.0.0/16")
	dnsIP    = netip.MustParseAddr("10.96.0.10")
)

// startNode runs all network components of a node, as the node program does: one set of
// caches, the pod network, the proxy and DNS.
func startNode(t *testing.T, c *client.Client, ns *nettest.NS, addr netip.Addr, podCIDR netip.Prefix) {
	t.Helper()
	set := netcache.New(c)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = set.Run(ctx) })
	for what, run := range map[string]func() error{
		"pod network": func() error {
			return cni.Run(ctx, cni.RunConfig{NodeName: ns.Name, NodeIP: addr, PodCIDR: podCIDR, ClusterCIDR: pods, ServiceCIDR: services,
				Masquerade: true, Nodes: set.Nodes()})
		},
		"proxy": func() error {
			return proxy.Run(ctx, proxy.Config{
				Node:   proxy.Node{Name: ns.Name, Addresses: []netip.Addr{addr}, ClusterCIDR: pods, ServiceCIDR: services, NodeLocal: []netip.Addr{dnsIP}},
				Source: set, Zone: func() string { return set.Zone(ns.Name) },
			})
		},
		"dns": func() error {
			return dns.Run(ctx, dns.Config{Source: set, ListenIP: dnsIP, ResolvConf: "/dev/null", ClusterCIDR: pods, ServiceCIDR: services})
		},
	} {
		wg.Add(1)
		ns.Go(func() {
			defer wg.Done()
			if err := run(); err != nil {
				t.Errorf("%s of %s: %v", what, ns.Name, err)
			}
		})
	}
	t.Cleanup(func() { cancel(); wg.Wait() })
}

func create[T client.Object](t *testing.T, c *client.Client, obj T) T {
	t.Helper()
	out, err := client.For[T](c).Create(t.Context(), obj)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// resolve queries cluster DNS for a name's addresses.
func resolve(from *nettest.NS, name string) ([]string, error) {
	conn, err := from.Dial("udp", netip.AddrPortFrom(dnsIP, 53))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	c := &mdns.Conn{Conn: conn}
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	if err := c.WriteMsg(new(mdns.Msg).SetQuestion(name, mdns.TypeA)); err != nil {
		return nil, err
	}
	m, err := c.ReadMsg()
	if err != nil {
		return nil, err
	}
	if m.Rcode != mdns.RcodeSuccess {
		return nil, errors.New(mdns.RcodeToString[m.Rcode])
	}
	var out []string
	for _, rr := range m.Answer {
		if a, ok := rr.(*mdns.A); ok {
			out = append(out, a.A.String())
		}
	}
	slices.Sort(out)
	return out, nil
}

func eventually(t *testing.T, what string, ok func() error) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting until %s: %v", what, err)
		}
		<-tick.C
	}
}

// TestAPodReachesAServiceByName runs two nodes, one with a firewall that drops by default,
// as Docker's does. A pod resolves a Service's name and reaches the pods behind it on both
// nodes.
func TestAPodReachesAServiceByName(t *testing.T) {
	t.Parallel()
	c := clienttest.Start(t)
	net := nettest.NewNet(t, netip.MustParsePrefix("10.89.0.0/24"))
	var all []*nettest.NS
	for i := range 2 {
		addr := netip.AddrFrom4([4]byte{10, 89, 0, byte(11 + i)})
		cidr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, byte(i + 1), 0}), 24)
		ns := net.Machine(fmt.Sprintf("node-%d", i+1), addr)
		if i == 0 {
			ns.Run("iptables-nft", "-P", "FORWARD", "DROP")
		}
		create(t, c, &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: ns.Name, Labels: map[string]string{corev1.LabelTopologyZone: "zone"}},
			Spec:       corev1.NodeSpec{PodCIDR: cidr.String()},
			Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr.String()}}},
		})
		pod := ns.Pod(fmt.Sprintf("pod-%d", i+1), cidr.Addr().Next().Next(), cidr.Addr().Next())
		pod.Serve("tcp", 8080)
		all = append(all, ns, pod)
		startNode(t, c, ns, addr, cidr)
	}
	node, pod := all[0], all[1]

	create(t, c, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, ClusterIP: "10.96.0.100", ClusterIPs: []string{"10.96.0.100"},
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: 30080}}},
	})
	create(t, c, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "headless"},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: corev1.ClusterIPNone},
	})
	slice := create(t, c, testSlice("web", "10.244.1.2@node-1", "10.244.2.2@node-2"))
	create(t, c, testSlice("headless", "10.244.1.2@node-1", "10.244.2.2@node-2"))

	for _, from := range []*nettest.NS{pod, node} {
		eventually(t, from.Name+" resolves the service", func() error {
			got, err := resolve(from, "web.default.svc.cluster.local.")
			if err == nil && !slices.Equal(got, []string{"10.96.0.100"}) {
				err = fmt.Errorf("got %v", got)
			}
			return err
		})
		eventually(t, from.Name+" resolves the headless service", func() error {
			got, err := resolve(from, "headless.default.svc.cluster.local.")
			if err == nil && !slices.Equal(got, []string{"10.244.1.2", "10.244.2.2"}) {
				err = fmt.Errorf("got %v", got)
			}
			return err
		})
		servers(t, from, "10.96.0.100:80", "pod-1", "pod-2")
	}
	servers(t, net.Host, "10.89.0.11:30080", "pod-1", "pod-2")

	// A removed endpoint gets no more connections.
	slice = slice.DeepCopy()
	slice.Endpoints = slice.Endpoints[1:]
	if _, err := client.For[*discoveryv1.EndpointSlice](c).Update(t.Context(), slice); err != nil {
		t.Fatal(err)
	}
	servers(t, pod, "10.96.0.100:80", "pod-2")
	// The Service itself is removed.
	if err := client.For[*corev1.Service](c).Delete(t.Context(), "default", "web"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the service is gone", func() error {
		_, err := resolve(pod, "web.default.svc.cluster.local.")
		if err == nil || err.Error() != "NXDOMAIN" {
			return fmt.Errorf("resolve: %w", err)
		}
		if _, err := pod.CallWithin(2*time.Second, "tcp", netip.MustParseAddrPort("10.96.0.100:80")); !nettest.Refused(err) {
			return fmt.Errorf("call: %w", err)
		}
		return nil
	})
}

// servers waits until all servers in want have answered and, twenty times in a row, no
// other server has.
func servers(t *testing.T, from *nettest.NS, to string, want ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s → %s is answered by %v", from.Name, to, want), func() error {
		seen := map[string]bool{}
		for range 20 {
			a, err := from.CallWithin(2*time.Second, "tcp", netip.MustParseAddrPort(to))
			if err != nil {
				return err
			}
			if !slices.Contains(want, a.Server) {
				return fmt.Errorf("answered by %s", a.Server)
			}
			seen[a.Server] = true
		}
		if len(seen) != len(want) {
			return fmt.Errorf("answered by %v", seen)
		}
		return nil
	})
}

func testSlice(service string, endpoints ...string) *discoveryv1.EndpointSlice {
	name, protocol, port := "http", corev1.ProtocolTCP, int32(8080)
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: service + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &protocol, Port: &port}},
	}
	for _, text := range endpoints {
		var addr, node string
		if _, err := fmt.Sscanf(text, "%10s@%s", &addr, &node); err != nil {
			panic(err)
		}
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{addr}, NodeName: &node})
	}
	return s
}

// TestSubscribe checks that each change is reported with its cause, and that both Services
// are reported when a slice changes owners.
func TestSubscribe(t *testing.T) {
	t.Parallel()
	c := clienttest.Start(t)
	set := netcache.New(c)
	var mu sync.Mutex
	var got []string
	set.Subscribe(func(ch proxy.Change) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, ch.Service.Name)
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- set.Run(ctx) }()
	defer func() { cancel(); <-done }()
	<-set.Synced()
	expect := func(what string, want ...string) {
		t.Helper()
		eventually(t, what, func() error {
			mu.Lock()
			defer mu.Unlock()
			for _, w := range want {
				if !slices.Contains(got, w) {
					return fmt.Errorf("reported: %v", got)
				}
			}
			got = nil
			return nil
		})
	}
	create(t, c, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "one",
		Annotations: map[string]string{"large": "gone", corev1.AnnotationLoadBalancerSourceRangesKey: "192.0.2.0/24"}}})
	expect("a service", "one")
	slice := create(t, c, testSlice("one", "10.244.1.2@node-1"))
	expect("its slice", "one")
	slice = slice.DeepCopy()
	slice.Labels[discoveryv1.LabelServiceName] = "two"
	if _, err := client.For[*discoveryv1.EndpointSlice](c).Update(t.Context(), slice); err != nil {
		t.Fatal(err)
	}
	expect("a slice that changes owners", "one", "two")

	svc, ok := set.Service("default", "one")
	if !ok || len(svc.Annotations) != 1 || svc.ManagedFields != nil {
		t.Errorf("cached: %+v", svc)
	}
	if !set.HasNamespace("default") || set.HasNamespace("other") {
		t.Error("namespaces")
	}
	if len(set.SlicesAt(netip.MustParseAddr("10.244.1.2"))) != 1 || len(set.ServiceSlices("default", "two")) != 1 {
		t.Error("indexes")
	}
}

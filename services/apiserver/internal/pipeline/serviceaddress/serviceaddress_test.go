package serviceaddress

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/memory"
)

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func allocator(t *testing.T, st store.Store, cidr string, c *clock) *Allocator {
	t.Helper()
	a, err := New(Config{Store: st, Addresses: netip.MustParsePrefix(cidr), FirstPort: 30000, LastPort: 30099, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func set(t *testing.T, cidr string) (*Allocator, *memory.Store, *clock) {
	t.Helper()
	st, c := memory.New(), &clock{now: time.Unix(1.8e9, 0)}
	t.Cleanup(st.Close)
	return allocator(t, st, cidr, c), st, c
}

func service(name string, kind corev1.ServiceType, ports ...int32) *corev1.Service {
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns"}, Spec: corev1.ServiceSpec{Type: kind}}
	for i, p := range ports {
		s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: strconv.Itoa(i), Port: p, Protocol: corev1.ProtocolTCP})
	}
	return s
}

func claimed(t *testing.T, a *Allocator, s, old *corev1.Service) {
	t.Helper()
	finish, err := claimErr(t, a, s, old)
	if err != nil {
		t.Fatal(err)
	}
	finish(true)
}

func claimErr(t *testing.T, a *Allocator, s, old *corev1.Service) (func(bool), error) {
	t.Helper()
	if s.Spec.ClusterIP != "" && s.Spec.ClusterIPs == nil { // as the kind prepares it
		s.Spec.ClusterIPs = []string{s.Spec.ClusterIP}
	}
	if old == nil {
		return a.Claim(t.Context(), s, nil, false)
	}
	return a.Claim(t.Context(), s, old, false)
}

func TestAddressesAreNeverShared(t *testing.T) {
	a, st, c := set(t, "10.0.0.0/24")
	others := []*Allocator{a, allocator(t, st, "10.0.0.0/24", c), allocator(t, st, "10.0.0.0/24", c)}
	var mu sync.Mutex
	seen := map[string]string{}
	var wg sync.WaitGroup
	for i, own := range others {
		wg.Go(func() {
			for n := range 60 {
				s := service(fmt.Sprintf("s%d-%d", i, n), corev1.ServiceTypeClusterIP, 80)
				finish, err := own.Claim(t.Context(), s, nil, false)
				if err != nil {
					t.Error(err)
					return
				}
				finish(true)
				mu.Lock()
				if other := seen[s.Spec.ClusterIP]; other != "" {
					t.Errorf("%s has the address of %s", s.Name, other)
				}
				seen[s.Spec.ClusterIP] = s.Name
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for ip := range seen {
		if addr := netip.MustParseAddr(ip); !netip.MustParsePrefix("10.0.0.0/24").Contains(addr) || strings.HasSuffix(ip, ".0") || strings.HasSuffix(ip, ".255") {
			t.Errorf("address %s", ip)
		}
	}
}

func TestAddress(t *testing.T) {
	a, _, _ := set(t, "10.0.0.0/28")
	first := service("first", corev1.ServiceTypeClusterIP, 80)
	first.Spec.ClusterIP = "10.0.0.1"
	claimed(t, a, first, nil)
	for name, test := range map[string]struct{ ip, text string }{
		"taken":     {"10.0.0.1", "failed to allocate IP 10.0.0.1: provided IP is already allocated"},
		"outside":   {"10.1.0.1", "failed to allocate IP 10.1.0.1: the provided IP (10.1.0.1) is not in the valid range. The range of valid IPs is 10.0.0.0/28"},
		"network":   {"10.0.0.0", "is not in the valid range"},
		"broadcast": {"10.0.0.15", "is not in the valid range"},
	} {
		s := service(name, corev1.ServiceTypeClusterIP, 80)
		s.Spec.ClusterIP, s.Spec.ClusterIPs = test.ip, []string{test.ip}
		_, err := claimErr(t, a, s, nil)
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), test.text) || !strings.Contains(err.Error(), "spec.clusterIPs: Invalid value") {
			t.Errorf("%s: %v", name, err)
		}
	}
	headless := service("headless", corev1.ServiceTypeClusterIP, 80)
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	claimed(t, a, headless, nil)
	for i := range 13 { // all that is left of 14
		claimed(t, a, service("s"+strconv.Itoa(i), corev1.ServiceTypeClusterIP, 80), nil)
	}
	if _, err := claimErr(t, a, service("late", corev1.ServiceTypeClusterIP, 80), nil); err == nil || !strings.Contains(err.Error(), "range is full") {
		t.Errorf("full range: %v", err)
	}
	a.Released(t.Context(), first)
	late := service("late", corev1.ServiceTypeClusterIP, 80)
	claimed(t, a, late, nil)
	if late.Spec.ClusterIP != "10.0.0.1" || late.Spec.ClusterIPs[0] != "10.0.0.1" {
		t.Errorf("got %v", late.Spec.ClusterIPs)
	}
	a.Released(t.Context(), first) // its address now belongs to another Service
	if _, err := claimErr(t, a, service("more", corev1.ServiceTypeClusterIP, 80), nil); err == nil {
		t.Error("released an address of another Service")
	}
}

// TestSharedNodePorts checks that ports with the same number and two protocols have the same node
// port, whichever of them requests it.
func TestSharedNodePorts(t *testing.T) {
	a, _, _ := set(t, "10.0.0.0/24")
	pair := func(first, second int32) *corev1.Service {
		s := service("dns", corev1.ServiceTypeNodePort, 53, 53, 80)
		s.Spec.Ports[1].Protocol = corev1.ProtocolUDP
		s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = first, second
		return s
	}
	for _, test := range []struct{ first, second, want int32 }{{30053, 0, 30053}, {0, 30054, 30054}, {0, 0, 0}} {
		s := pair(test.first, test.second)
		claimed(t, a, s, nil)
		p := s.Spec.Ports
		if p[0].NodePort == 0 || p[0].NodePort != p[1].NodePort || test.want != 0 && p[0].NodePort != test.want || p[2].NodePort == p[0].NodePort {
			t.Errorf("%+v: %+v", test, p)
		}
		grown := s.DeepCopy()
		grown.Spec.Ports = append(grown.Spec.Ports, corev1.ServicePort{Name: "more", Port: 80, Protocol: corev1.ProtocolUDP})
		claimed(t, a, grown, s)
		if grown.Spec.Ports[3].NodePort != p[2].NodePort {
			t.Errorf("%+v", grown.Spec.Ports)
		}
		a.Released(t.Context(), grown)
	}
	apart := pair(30060, 30061)
	claimed(t, a, apart, nil)
	if p := apart.Spec.Ports; p[0].NodePort != 30060 || p[1].NodePort != 30061 {
		t.Errorf("two requested node ports: %+v", p)
	}
}

// TestContradictions checks that contradictory clusterIP and clusterIPs allocate nothing.
func TestContradictions(t *testing.T) {
	a, st, _ := set(t, "10.0.0.0/24")
	for name, spec := range map[string]struct {
		ip   string
		ips  []string
		text string
	}{
		"only the plural": {"", []string{"10.0.0.9"}, "must be empty when `clusterIP` is not specified"},
		"two addresses":   {"10.0.0.9", []string{"10.0.0.10"}, "first value must match `clusterIP`"},
		"none and more":   {"None", []string{"None", "10.0.0.10"}, "'None' must be the first and only value"},
	} {
		s := service("s", corev1.ServiceTypeClusterIP, 80)
		s.Spec.ClusterIP, s.Spec.ClusterIPs = spec.ip, spec.ips
		if _, err := claimErr(t, a, s, nil); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), spec.text) {
			t.Errorf("%s: %v", name, err)
		}
		if page, err := st.List(t.Context(), addressPrefix, store.ListOptions{}); err != nil || len(page.Entries) > 0 {
			t.Errorf("%s: %d addresses are allocated, %v", name, len(page.Entries), err)
		}
	}
}

func TestFailedWritesRelease(t *testing.T) {
	a, _, _ := set(t, "10.0.0.0/30") // two usable addresses
	for range 5 {
		s := service("s", corev1.ServiceTypeNodePort, 80)
		s.Spec.Ports[0].NodePort = 30001
		finish, err := claimErr(t, a, s, nil)
		if err != nil {
			t.Fatal(err)
		}
		finish(false)
	}
	s := service("s", corev1.ServiceTypeNodePort, 80)
	if finish, err := a.Claim(t.Context(), s, nil, true); err != nil || finish != nil || s.Spec.ClusterIP == "" || s.Spec.Ports[0].NodePort == 0 {
		t.Errorf("dry run: %v, %+v", err, s.Spec)
	}
	for _, name := range []string{"a", "b"} {
		claimed(t, a, service(name, corev1.ServiceTypeNodePort, 80), nil)
	}
}

func TestChangesOfType(t *testing.T) {
	a, _, _ := set(t, "10.0.0.0/24")
	s := service("s", corev1.ServiceTypeClusterIP, 80)
	claimed(t, a, s, nil)
	ip := s.Spec.ClusterIP
	node := s.DeepCopy()
	node.Spec.Type = corev1.ServiceTypeNodePort
	claimed(t, a, node, s)
	if node.Spec.ClusterIP != ip || node.Spec.Ports[0].NodePort == 0 {
		t.Errorf("%+v", node.Spec)
	}
	balanced := node.DeepCopy()
	balanced.Spec.Type = corev1.ServiceTypeLoadBalancer
	balanced.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	claimed(t, a, balanced, node)
	if balanced.Spec.HealthCheckNodePort == 0 || balanced.Spec.HealthCheckNodePort == balanced.Spec.Ports[0].NodePort {
		t.Errorf("%+v", balanced.Spec)
	}
	name := balanced.DeepCopy()
	name.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "x"}
	claimed(t, a, name, balanced)
	for i, old := range []*corev1.Service{node, balanced} { // everything is free again
		again := service("again"+strconv.Itoa(i), corev1.ServiceTypeNodePort, 80)
		again.Spec.Ports[0].NodePort = old.Spec.Ports[0].NodePort
		if i == 0 {
			again.Spec.ClusterIP = ip
		} else {
			again.Spec.Ports[0].NodePort = old.Spec.HealthCheckNodePort
		}
		claimed(t, a, again, nil)
	}
}

func TestNodePorts(t *testing.T) {
	a, _, _ := set(t, "10.0.0.0/16")
	s := service("s", corev1.ServiceTypeNodePort, 53, 53, 80)
	s.Spec.Ports[1].Protocol = corev1.ProtocolUDP
	claimed(t, a, s, nil)
	p := s.Spec.Ports
	if p[0].NodePort != p[1].NodePort || p[0].NodePort == p[2].NodePort || p[2].NodePort == 0 {
		t.Errorf("ports %+v", p)
	}
	for want, text := range map[int32]string{p[0].NodePort: "provided port is already allocated", 80: "provided port is not in the valid range. The range of valid ports is 30000-30099"} {
		bad := service("bad", corev1.ServiceTypeNodePort, 80)
		bad.Spec.Ports[0].NodePort = want
		if _, err := claimErr(t, a, bad, nil); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), fmt.Sprintf("spec.ports[0].nodePort: Invalid value: %d: %s", want, text)) {
			t.Errorf("%d: %v", want, err)
		}
	}
	no := false
	bare := service("bare", corev1.ServiceTypeLoadBalancer, 80)
	bare.Spec.AllocateLoadBalancerNodePorts = &no
	claimed(t, a, bare, nil)
	if bare.Spec.Ports[0].NodePort != 0 {
		t.Error("allocated a node port that was not requested")
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	taken := map[int32]int{}
	for i := range 40 {
		wg.Go(func() {
			s := service("n"+strconv.Itoa(i), corev1.ServiceTypeNodePort, 80, 81)
			finish, err := a.Claim(t.Context(), s, nil, false)
			if err != nil {
				t.Error(err)
				return
			}
			finish(true)
			mu.Lock()
			defer mu.Unlock()
			for _, p := range s.Spec.Ports {
				taken[p.NodePort]++
			}
		})
	}
	wg.Wait()
	for port, n := range taken {
		if n > 1 || port == p[0].NodePort {
			t.Errorf("port %d was allocated %d times", port, n)
		}
	}
}

// write stores a Service in the way that the pipeline does.
func write(t *testing.T, st store.Store, s *corev1.Service) {
	t.Helper()
	value, err := envelope.EncodeObject(envelope.Value{APIVersion: "v1", Kind: "Service"}, s)
	if err != nil {
		t.Fatal(err)
	}
	v, err := st.Commit(t.Context(), []store.Write{{Key: servicePrefix + s.Namespace + "/" + s.Name, Value: value}})
	if err != nil || v[0].Err != nil {
		t.Fatal(err, v)
	}
}

func TestRepair(t *testing.T) {
	a, st, c := set(t, "10.0.0.0/24")
	// All request specific addresses and ports: random ones could collide with those of the
	// foreign Service, which are not allocated.
	kept := service("kept", corev1.ServiceTypeNodePort, 80)
	kept.Spec.ClusterIP, kept.Spec.Ports[0].NodePort = "10.0.0.11", 30011
	claimed(t, a, kept, nil)
	write(t, st, kept)
	lost := service("lost", corev1.ServiceTypeNodePort, 80) // its apiserver failed before it was stored
	lost.Spec.ClusterIP, lost.Spec.Ports[0].NodePort = "10.0.0.12", 30012
	claimed(t, a, lost, nil)
	foreign := service("foreign", corev1.ServiceTypeNodePort, 80) // restored from a backup
	foreign.Spec.ClusterIP, foreign.Spec.Ports[0].NodePort = "10.0.0.77", 30077
	write(t, st, foreign)

	again := allocator(t, st, "10.0.0.0/24", c)
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- again.Run(ctx, func() { close(ready) }) }()
	<-ready
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	young := service("young", corev1.ServiceTypeClusterIP, 80)
	young.Spec.ClusterIP = lost.Spec.ClusterIP
	if _, err := claimErr(t, again, young, nil); err == nil {
		t.Error("released an address whose Service may be about to be stored")
	}
	taken := service("taken", corev1.ServiceTypeNodePort, 80)
	taken.Spec.ClusterIP = "10.0.0.77"
	if _, err := claimErr(t, again, taken, nil); err == nil {
		t.Error("a Service's address was not allocated")
	}
	taken = service("taken", corev1.ServiceTypeNodePort, 80)
	taken.Spec.Ports[0].NodePort = 30077
	finish, err := claimErr(t, again, taken, nil)
	if err == nil {
		t.Error("a Service's port was not allocated")
	}
	if finish != nil {
		finish(false)
	}
	c.pass(2 * leakAge)
	leaked, err := again.repair(t.Context(), nil)
	if err != nil || !leaked[lost.Spec.Ports[0].NodePort] {
		t.Fatalf("leaked %v, %v", leaked, err)
	}
	if _, err := again.repair(t.Context(), leaked); err != nil {
		t.Fatal(err)
	}
	fresh := service("fresh", corev1.ServiceTypeNodePort, 80)
	fresh.Spec.ClusterIP, fresh.Spec.Ports[0].NodePort = lost.Spec.ClusterIP, lost.Spec.Ports[0].NodePort
	claimed(t, again, fresh, nil)
	bad := service("bad", corev1.ServiceTypeNodePort, 80)
	bad.Spec.ClusterIP = kept.Spec.ClusterIP
	if _, err := claimErr(t, again, bad, nil); err == nil {
		t.Error("repair released what a Service uses")
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{
		{Addresses: netip.MustParsePrefix("fd00::/112"), FirstPort: 1, LastPort: 2},
		{Addresses: netip.MustParsePrefix("10.0.0.0/31"), FirstPort: 1, LastPort: 2},
		{Addresses: netip.MustParsePrefix("10.0.0.0/16"), FirstPort: 3, LastPort: 2},
		{Addresses: netip.MustParsePrefix("10.0.0.0/16"), FirstPort: 0, LastPort: 2},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

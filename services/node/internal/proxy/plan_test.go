package proxy

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/knftables"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

// TestGoldenTables compares the whole table, in nft's syntax, for one Service of each kind.
func TestGoldenTables(t *testing.T) {
	t.Parallel()
	local, remote, second := "10.244.1.2@node-1", "10.244.2.2@node-2", "10.244.2.3@node-2"
	proxied := corev1.LoadBalancerIPModeProxy
	for name, row := range map[string]struct {
		svc *corev1.Service
		eps []string
	}{
		"empty":                   {nil, nil},
		"cluster-ip":              {service("web", "10.96.0.100"), []string{local, remote}},
		"one-endpoint":            {service("web", "10.96.0.100"), []string{remote}},
		"no-endpoints":            {service("web", "10.96.0.100", nodePort(30080)), []string{"10.244.1.2@node-1!"}},
		"node-port":               {service("web", "10.96.0.100", nodePort(30080)), []string{remote, second}},
		"load-balancer":           {service("web", "10.96.0.100", loadBalancer(30080, "10.90.0.5")), []string{remote}},
		"load-balancer-local":     {service("web", "10.96.0.100", loadBalancer(30080, "10.90.0.5"), externalLocal), []string{local, remote}},
		"load-balancer-elsewhere": {service("web", "10.96.0.100", loadBalancer(30080, "10.90.0.5"), externalLocal), []string{remote}},
		"source-ranges": {service("web", "10.96.0.100", loadBalancer(30080, "10.90.0.5"), func(s *corev1.Service) {
			s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.77/24", "198.51.100.0/24", "192.0.2.0/24"}
		}), []string{remote}},
		"external-ip": {service("web", "10.96.0.100", func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"203.0.113.5", "2001:db8::5"} }), []string{remote}},
		"ip-mode-proxy": {service("web", "10.96.0.100", loadBalancer(30080, "10.90.0.5"), func(s *corev1.Service) {
			s.Status.LoadBalancer.Ingress[0].IPMode = &proxied
		}), []string{remote}},
		"internal-local":       {service("web", "10.96.0.100", internalLocal), []string{local, remote}},
		"internal-elsewhere":   {service("web", "10.96.0.100", internalLocal), []string{remote}},
		"affinity":             {service("web", "10.96.0.100", sticky(600)), []string{local, remote}},
		"udp":                  {service("dns", "10.96.0.100", protocol(corev1.ProtocolUDP)), []string{local, remote}},
		"sctp":                 {service("sig", "10.96.0.100", protocol(corev1.ProtocolSCTP), nodePort(30080)), []string{local, remote}},
		"terminating":          {service("web", "10.96.0.100"), []string{local + "-", remote}},
		"terminating-only":     {service("web", "10.96.0.100"), []string{local + "-", remote + "-", second + "x"}},
		"headless":             {service("web", "None"), []string{local}},
		"answered-by-the-node": {service("kube-dns", "10.96.0.10"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := newTable()
			if row.svc != nil {
				source.set(row.svc, slice(row.svc, 8080, row.eps...))
			}
			fake := knftables.NewFake(knftables.IPv4Family, TableName)
			s := newSyncer(testNode(), fake)
			s.full = true
			if _, err := s.sync(context.Background(), source, nil); err != nil {
				t.Fatal(err)
			}
			got := fake.Dump()
			if row.svc != nil {
				got = without(got, skeletonDump(t))
			}
			path := filepath.Join("testdata", name+".nft")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("the table changed (rewrite with -update):\n%s", got)
			}
		})
	}
}

func skeletonDump(t *testing.T) string {
	t.Helper()
	fake := knftables.NewFake(knftables.IPv4Family, TableName)
	s := newSyncer(testNode(), fake)
	s.full = true
	if _, err := s.sync(context.Background(), newTable(), nil); err != nil {
		t.Fatal(err)
	}
	return fake.Dump()
}

// without removes the lines that every table has.
func without(dump, common string) string {
	known := strings.Split(common, "\n")
	var out strings.Builder
	for line := range strings.SplitSeq(dump, "\n") {
		if line != "" && !slices.Contains(known, line) {
			fmt.Fprintln(&out, line)
		}
	}
	return out.String()
}

func TestUsable(t *testing.T) {
	t.Parallel()
	svc := service("web", "10.96.0.100")
	for _, row := range []struct{ name, eps, want, local string }{
		{"ready", "10.244.1.2@node-1 10.244.2.2@node-2", "10.244.1.2 10.244.2.2", "10.244.1.2"},
		{"not ready", "10.244.1.2@node-1! 10.244.2.2@node-2", "10.244.2.2", ""},
		{"terminating", "10.244.1.2@node-1- 10.244.2.2@node-2", "10.244.2.2", "10.244.1.2"},
		{"all terminating", "10.244.1.2@node-1- 10.244.2.2@node-2-", "10.244.1.2 10.244.2.2", "10.244.1.2"},
		{"terminating and not serving", "10.244.1.2@node-1x 10.244.2.2@node-2x", "", ""},
		{"none", "10.244.1.2@node-1!", "", ""},
		{"without a node", "10.244.1.2", "10.244.1.2", ""},
		{"junk", "nonsense@node-1 10.244.2.2@node-2 2001:db8::1", "10.244.2.2", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			all := endpointsFor(testNode(), svc.Spec.Ports[0], []*discoveryv1.EndpointSlice{slice(svc, 80, strings.Fields(row.eps)...)})
			text := func(list []endpoint) string {
				var out []string
				for _, e := range list {
					out = append(out, e.addr.Addr().String())
				}
				return strings.Join(out, " ")
			}
			if got := text(usable(all, nil)); got != row.want {
				t.Errorf("all: %q, want %q", got, row.want)
			}
			if got := text(usable(all, isLocal)); got != row.local {
				t.Errorf("local: %q, want %q", got, row.local)
			}
		})
	}
}

func TestEndpointsInTwoSlicesCountOnce(t *testing.T) {
	t.Parallel()
	svc := service("web", "10.96.0.100")
	other := slice(svc, 80, "10.244.1.2@node-1!")
	other.Name = "web-2"
	for _, list := range [][]*discoveryv1.EndpointSlice{
		{slice(svc, 80, "10.244.1.2@node-1"), other}, {other, slice(svc, 80, "10.244.1.2@node-1")},
	} {
		got := endpointsFor(testNode(), svc.Spec.Ports[0], list)
		if len(got) != 1 || !got[0].ready {
			t.Errorf("%+v", got)
		}
	}
}

func TestPortsAreMatchedByNameAndProtocol(t *testing.T) {
	t.Parallel()
	name, tcp, udp := "web", corev1.ProtocolTCP, corev1.ProtocolUDP
	number := func(n int32) *int32 { return &n }
	for _, row := range []struct {
		port discoveryv1.EndpointPort
		want bool
	}{
		{discoveryv1.EndpointPort{Name: &name, Protocol: &tcp, Port: number(8080)}, true},
		{discoveryv1.EndpointPort{Name: &name, Port: number(8080)}, true},
		{discoveryv1.EndpointPort{Name: &name, Protocol: &udp, Port: number(8080)}, false},
		{discoveryv1.EndpointPort{Protocol: &tcp, Port: number(8080)}, false},
		{discoveryv1.EndpointPort{Name: &name, Protocol: &tcp}, false},
		{discoveryv1.EndpointPort{Name: &name, Protocol: &tcp, Port: number(70000)}, false},
	} {
		s := &discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{row.port}}
		if _, ok := slicePort(s, corev1.ServicePort{Name: "web", Protocol: corev1.ProtocolTCP}); ok != row.want {
			t.Errorf("%+v: matched %v", row.port, ok)
		}
	}
}

func TestHints(t *testing.T) {
	t.Parallel()
	node := testNode()
	node.Zone = "zone-a"
	ep := func(i byte, zones, nodes []string) endpoint {
		return endpoint{addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 0, i}), 80), ready: true, forZones: zones, forNodes: nodes}
	}
	a, b := []string{"zone-a"}, []string{"zone-b"}
	here, there := []string{"node-1"}, []string{"node-2"}
	for _, row := range []struct {
		name string
		eps  []endpoint
		want int
	}{
		{"none has hints", []endpoint{ep(1, nil, nil), ep(2, nil, nil)}, 2},
		{"one for our zone", []endpoint{ep(1, a, nil), ep(2, b, nil)}, 1},
		{"none for our zone", []endpoint{ep(1, b, nil), ep(2, b, nil)}, 2},
		{"one has no hint", []endpoint{ep(1, a, nil), ep(2, nil, nil)}, 2},
		{"for our node", []endpoint{ep(1, a, here), ep(2, a, there), ep(3, a, here)}, 2},
		{"for other nodes, then the zone", []endpoint{ep(1, a, there), ep(2, b, there)}, 1},
	} {
		if got := nearby(node, row.eps); len(got) != row.want {
			t.Errorf("%s: %d endpoints, want %d", row.name, len(got), row.want)
		}
	}
}

// TestIncrementsEqualReplacement checks that applying changes one at a time results in the
// same table as building it at once, except for hairpins of former endpoints (see
// state.hairpins).
func TestIncrementsEqualReplacement(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	for seed := range uint64(20) {
		random := rand.New(rand.NewPCG(seed, 7))
		source := newTable()
		fake := knftables.NewFake(knftables.IPv4Family, TableName)
		s := newSyncer(testNode(), fake)
		s.full = true
		if _, err := s.sync(ctx, source, nil); err != nil {
			t.Fatal(err)
		}
		for step := range 60 {
			var keys []types.NamespacedName
			for range 1 + random.IntN(3) {
				keys = append(keys, mutate(random, source))
			}
			if _, err := s.sync(ctx, source, keys); err != nil {
				t.Fatalf("seed %d, step %d, %v: %v", seed, step, keys, err)
			}
			fresh := knftables.NewFake(knftables.IPv4Family, TableName)
			all := newSyncer(testNode(), fresh)
			all.full = true
			if _, err := all.sync(ctx, source, nil); err != nil {
				t.Fatal(err)
			}
			got, want := canonicalDump(fake.Dump()), canonicalDump(fresh.Dump())
			more, less := without(got, want), without(want, got)
			for line := range strings.Lines(more) {
				if text := strings.TrimSpace(line); text != "" && !strings.HasPrefix(text, "add element ip "+TableName+" "+setHairpin+" ") {
					t.Fatalf("seed %d, step %d: by increments\n%s\nat once\n%s", seed, step, more, less)
				}
			}
			if strings.TrimSpace(less) != "" {
				t.Fatalf("seed %d, step %d: only at once\n%s", seed, step, less)
			}
		}
	}
}

// canonicalDump sorts the lines. The order of rules within a chain is fixed in any case,
// and each chain has one balancing rule.
func canonicalDump(dump string) string {
	lines := strings.Split(dump, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// mutate changes, adds or removes a random Service. External IPs and load balancer
// addresses collide on purpose.
func mutate(random *rand.Rand, source *table) types.NamespacedName {
	i := random.IntN(6)
	svc := service(fmt.Sprintf("svc-%d", i), fmt.Sprintf("10.96.0.%d", 100+i))
	svc.CreationTimestamp = metav1.NewTime(time.Unix(int64(1000+i%3), 0))
	if random.IntN(5) == 0 {
		source.remove(svc)
		return keyOf(svc)
	}
	edits := []func(*corev1.Service){
		nodePort(int32(30000 + i)), loadBalancer(int32(30000+i), fmt.Sprintf("10.90.0.%d", random.IntN(3))),
		externalLocal, internalLocal, sticky(int32(60 * (1 + random.IntN(2)))), protocol(corev1.ProtocolUDP),
		func(s *corev1.Service) { s.Spec.ExternalIPs = []string{fmt.Sprintf("203.0.113.%d", random.IntN(2))} },
		func(s *corev1.Service) { s.Spec.LoadBalancerSourceRanges = []string{"192.0.2.0/24"} },
		func(s *corev1.Service) {
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "web", Protocol: corev1.ProtocolTCP, Port: 81})
		},
	}
	for _, edit := range edits {
		if random.IntN(3) == 0 {
			edit(svc)
		}
	}
	var eps []string
	for _, e := range []string{"10.244.1.2@node-1", "10.244.1.3@node-1", "10.244.2.2@node-2", "10.244.2.3@node-2"} {
		switch random.IntN(4) {
		case 0:
			eps = append(eps, e)
		case 1:
			eps = append(eps, e+[]string{"", "!", "-", "x"}[random.IntN(4)])
		}
	}
	source.set(svc, slice(svc, 8080, eps...))
	return keyOf(svc)
}

func TestTheOlderServiceKeepsASharedAddress(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	source := newTable()
	claim := func(s *corev1.Service) { s.Spec.ExternalIPs = []string{"203.0.113.5"} }
	younger := service("a", "10.96.0.100", claim)
	younger.CreationTimestamp = metav1.NewTime(time.Unix(2000, 0))
	older := service("b", "10.96.0.101", claim)
	fake := knftables.NewFake(knftables.IPv4Family, TableName)
	s := newSyncer(testNode(), fake)
	s.full = true
	if _, err := s.sync(ctx, source, nil); err != nil {
		t.Fatal(err)
	}
	holder := func() string {
		for _, e := range fake.Table.Maps[mapIPs].Elements {
			if e.Key[0] == "203.0.113.5" {
				return e.Value[0]
			}
		}
		return ""
	}
	step := func(svc *corev1.Service, want string) {
		t.Helper()
		if _, err := s.sync(ctx, source, []types.NamespacedName{keyOf(svc)}); err != nil {
			t.Fatal(err)
		}
		if got := holder(); got != want {
			t.Errorf("the address leads to %q, want %q", got, want)
		}
	}
	source.set(younger, slice(younger, 80, "10.244.1.2"))
	step(younger, "goto external-ns/a/tcp/80")
	source.set(older, slice(older, 80, "10.244.1.3"))
	step(older, "goto external-ns/b/tcp/80")
	if c := s.takeConflicts(); len(c) != 1 || c[0].loser.Name != "a" || c[0].holder.Name != "b" {
		t.Errorf("conflicts: %+v", c)
	}
	source.remove(older)
	step(older, "goto external-ns/a/tcp/80")
}

func TestAFailedChangeIsMadeGood(t *testing.T) {
	t.Parallel()
	source := newTable()
	fake := knftables.NewFake(knftables.IPv4Family, TableName)
	s := newSyncer(testNode(), fake)
	s.full = true
	if _, err := s.sync(context.Background(), source, nil); err != nil {
		t.Fatal(err)
	}
	svc := service("web", "10.96.0.100")
	source.set(svc, slice(svc, 80, "10.244.1.2"))
	// The kernel's table is gone: the change fails, and the repair succeeds.
	tx := fake.NewTransaction()
	tx.Delete(&knftables.Table{})
	if err := fake.Run(context.Background(), tx); err != nil {
		t.Fatal(err)
	}
	if _, err := s.sync(context.Background(), source, []types.NamespacedName{keyOf(svc)}); err == nil {
		t.Fatal("a change to a missing table succeeded")
	}
	s.full = true
	if _, err := s.sync(context.Background(), source, nil); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(fake.Dump(), "dnat to 10.244.1.2:80") {
		t.Errorf("after the repair:\n%s", fake.Dump())
	}
}

func TestUDPFilter(t *testing.T) {
	t.Parallel()
	svc := service("udp", "10.96.0.100", protocol(corev1.ProtocolUDP), nodePort(30053))
	st := newState()
	st.put(keyOf(svc), plan(testNode(), svc, []*discoveryv1.EndpointSlice{slice(svc, 53, "10.244.1.2@node-1")}), newDelta())
	f := newUDPFilter(testNode(), st, []udpPort{{addr: netip.MustParseAddr("10.96.0.200"), port: 53}})
	for _, row := range []struct {
		front, target string
		want          bool
	}{
		{"10.96.0.100:80", "10.244.1.2:53", false},
		{"10.96.0.100:80", "10.244.1.9:53", true},
		{"10.96.0.100:80", "10.96.0.100:80", true},
		{"10.96.0.100:81", "10.244.1.9:53", false},
		{"10.89.0.11:30053", "10.244.1.2:53", false},
		{"10.89.0.11:30053", "10.244.1.9:53", true},
		{"10.89.0.99:30053", "10.244.1.9:53", false}, // not an address of this node
		{"10.96.0.200:53", "10.244.1.2:53", true},    // its Service is gone
		{"192.0.2.1:53", "192.0.2.1:53", false},
	} {
		if got := f.stale(netip.MustParseAddrPort(row.front), netip.MustParseAddrPort(row.target)); got != row.want {
			t.Errorf("%s answered by %s: stale %v, want %v", row.front, row.target, got, row.want)
		}
	}
}

// TestHairpinsOutliveTheirEndpoint checks that the hairpin rule of a former endpoint is kept,
// because the pod may have a packet to itself in flight.
func TestHairpinsOutliveTheirEndpoint(t *testing.T) {
	t.Parallel()
	svc := service("web", "10.96.0.100")
	key := types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name}
	s := newState()
	node := testNode()
	s.put(key, plan(node, svc, []*discoveryv1.EndpointSlice{slice(svc, 8080, endpoints[:2]...)}), newDelta())
	d := newDelta()
	s.put(key, plan(node, svc, []*discoveryv1.EndpointSlice{slice(svc, 8080, endpoints[2])}), d)
	for e := range d.oldElements {
		if e.container == setHairpin {
			t.Errorf("%s is removed from %s", e.key, e.container)
		}
	}
	d = newDelta()
	s.put(key, plan(node, svc, []*discoveryv1.EndpointSlice{slice(svc, 8080, endpoints[:2]...)}), d)
	for e := range d.newElements {
		if e.container == setHairpin {
			t.Errorf("%s is added to %s again", e.key, e.container)
		}
	}
}

// Package providertest is the conformance suite of providers, run in process and over
// the wire.
package providertest

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"keelson.dev/services/cloud-controller/internal/provider"
)

// Cluster is the cluster's name in the suite.
const Cluster = "test"

// Setup returns an empty provider for one test. Machine adds or changes a machine of
// it; Remove removes one.
type Setup func(t *testing.T) (p provider.Provider, machine func(name string, i provider.Instance), remove func(name string))

// Run runs the suite against a provider that has at least four addresses, in
// process and over the wire.
func Run(t *testing.T, setup Setup) {
	t.Run("in process", func(t *testing.T) { run(t, setup) })
	t.Run("over the wire", func(t *testing.T) {
		run(t, func(t *testing.T) (provider.Provider, func(string, provider.Instance), func(string)) {
			p, machine, remove := setup(t)
			return OverWire(t, p), machine, remove
		})
	})
}

// OverWire serves a provider over an in-memory connection and returns a client for it.
func OverWire(t *testing.T, p provider.Provider) provider.Provider {
	t.Helper()
	l := bufconn.Listen(1 << 16)
	s := grpc.NewServer()
	provider.Register(s, p)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(l)
	}()
	conn, err := grpc.NewClient("passthrough:///provider", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); s.Stop(); <-done })
	return provider.New(conn)
}

func run(t *testing.T, setup Setup) {
	for name, test := range map[string]func(*testing.T, Setup){
		"instances": instances, "foreign instance": foreign, "ensure": ensure, "requested address": requested,
		"bad requests": bad, "delete": deletion, "list": list,
	} {
		t.Run(name, func(t *testing.T) { test(t, setup) })
	}
}

func instances(t *testing.T, setup Setup) {
	p, machine, remove := setup(t)
	ctx := t.Context()
	if _, err := p.Instance(ctx, "node-0", ""); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("a machine that does not exist: %v", err)
	}
	want := provider.Instance{
		ProviderID: "local://c/node-0", Zone: "zone-a", Region: "region", InstanceType: "small",
		Addresses: []provider.Address{{Type: "InternalIP", Address: "10.89.0.11"}, {Type: "Hostname", Address: "node-0"}},
	}
	machine("node-0", want)
	for _, id := range []string{"", want.ProviderID} {
		got, err := p.Instance(ctx, "node-0", id)
		if err != nil || got.ProviderID != want.ProviderID || got.Zone != want.Zone || got.Region != want.Region ||
			got.InstanceType != want.InstanceType || got.Shutdown || !slices.Equal(got.Addresses, want.Addresses) {
			t.Errorf("by id %q: %+v, %v", id, got, err)
		}
	}
	// The id takes precedence over the name.
	if _, err := p.Instance(ctx, "node-0", "local://c/node-9"); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("another id: %v", err)
	}
	want.Shutdown = true
	machine("node-0", want)
	if got, err := p.Instance(ctx, "node-0", ""); err != nil || !got.Shutdown {
		t.Errorf("shut down: %+v, %v", got, err)
	}
	remove("node-0")
	if _, err := p.Instance(ctx, "node-0", want.ProviderID); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("removed: %v", err)
	}
}

func foreign(t *testing.T, setup Setup) {
	p, _, _ := setup(t)
	_, err := p.Instance(t.Context(), "node-0", "elsewhere://node-0")
	if !errors.Is(err, provider.ErrForeign) || errors.Is(err, provider.ErrNotFound) {
		t.Errorf("a machine of another provider: %v", err)
	}
}

// Balancer returns a request that every provider can serve.
func Balancer(id string) provider.LoadBalancer {
	return provider.LoadBalancer{
		Cluster: Cluster, ID: id, Service: "default/" + id,
		Ports:   []provider.Port{{Protocol: "TCP", Port: 80, NodePort: 30080}},
		Targets: []provider.Target{{Name: "node-0", Address: netip.MustParseAddr("10.89.0.11")}},
	}
}

func mustEnsure(t *testing.T, p provider.Provider, lb provider.LoadBalancer) netip.Addr {
	t.Helper()
	addrs, err := p.EnsureLoadBalancer(t.Context(), lb)
	if err != nil || len(addrs) == 0 {
		t.Fatalf("load balancer %s: %v, %v", lb.ID, addrs, err)
	}
	return addrs[0]
}

func ensure(t *testing.T, setup Setup) {
	p, _, _ := setup(t)
	a := mustEnsure(t, p, Balancer("a"))
	if again := mustEnsure(t, p, Balancer("a")); again != a {
		t.Errorf("asked twice: %s, then %s", a, again)
	}
	lb := Balancer("a")
	lb.Targets, lb.Ports[0].Port = nil, 81
	if changed := mustEnsure(t, p, lb); changed != a {
		t.Errorf("a change moved it from %s to %s", a, changed)
	}
	if b := mustEnsure(t, p, Balancer("b")); b == a {
		t.Errorf("two load balancers have %s", a)
	}
}

func requested(t *testing.T, setup Setup) {
	p, _, _ := setup(t)
	first := mustEnsure(t, p, Balancer("a"))
	if err := p.DeleteLoadBalancer(t.Context(), Cluster, "a"); err != nil {
		t.Fatal(err)
	}
	lb := Balancer("b")
	lb.RequestedAddress = first
	if got := mustEnsure(t, p, lb); got != first {
		t.Errorf("got %s, asked for %s", got, first)
	}
	lb.ID = "c"
	if _, err := p.EnsureLoadBalancer(t.Context(), lb); !errors.Is(err, provider.ErrTaken) {
		t.Errorf("an address in use: %v", err)
	}
	lb.RequestedAddress = netip.MustParseAddr("192.0.2.1")
	if _, err := p.EnsureLoadBalancer(t.Context(), lb); !errors.Is(err, provider.ErrInvalid) {
		t.Errorf("an address outside of the range: %v", err)
	}
}

func bad(t *testing.T, setup Setup) {
	p, _, _ := setup(t)
	for name, edit := range map[string]func(*provider.LoadBalancer){
		"no id":      func(lb *provider.LoadBalancer) { lb.ID = "" },
		"no cluster": func(lb *provider.LoadBalancer) { lb.Cluster = "" },
	} {
		lb := Balancer("a")
		edit(&lb)
		if _, err := p.EnsureLoadBalancer(t.Context(), lb); !errors.Is(err, provider.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func deletion(t *testing.T, setup Setup) {
	p, _, _ := setup(t)
	mustEnsure(t, p, Balancer("a"))
	for _, id := range []string{"a", "a", "never"} {
		if err := p.DeleteLoadBalancer(t.Context(), Cluster, id); err != nil {
			t.Errorf("delete %s: %v", id, err)
		}
	}
	mustEnsure(t, p, Balancer("a"))
}

func list(t *testing.T, setup Setup) {
	p, _, _ := setup(t)
	expect := func(want ...string) {
		t.Helper()
		got, err := p.ListLoadBalancers(t.Context(), Cluster)
		slices.Sort(got)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("listed %v, %v; want %v", got, err, want)
		}
	}
	expect()
	mustEnsure(t, p, Balancer("a"))
	mustEnsure(t, p, Balancer("b"))
	expect("a", "b")
	if err := p.DeleteLoadBalancer(t.Context(), Cluster, "a"); err != nil {
		t.Fatal(err)
	}
	expect("b")
	if got, err := p.ListLoadBalancers(t.Context(), "another"); err != nil || len(got) != 0 {
		t.Errorf("of another cluster: %v, %v", got, err)
	}
}

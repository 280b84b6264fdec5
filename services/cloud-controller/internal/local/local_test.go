package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"keelson.dev/services/cloud-controller/internal/provider"
	"keelson.dev/services/cloud-controller/internal/provider/providertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newProvider makes a provider in a network namespace of its own.
func newProvider(t *testing.T, h *host, edit func(*Config)) *Provider {
	t.Helper()
	cfg := Config{Inventory: t.TempDir(), Cluster: providertest.Cluster, Addresses: netip.MustParsePrefix("10.90.0.0/24")}
	if edit != nil {
		edit(&cfg)
	}
	var p *Provider
	h.must(func() (err error) {
		p, err = New(cfg)
		return err
	})
	t.Cleanup(p.Close)
	return p
}

func writeMachine(t *testing.T, dir, name string, i provider.Instance) {
	t.Helper()
	m := map[string]any{"name": name, "providerID": i.ProviderID, "zone": i.Zone, "region": i.Region, "instanceType": i.InstanceType, "shutdown": i.Shutdown}
	var addrs []map[string]string
	for _, a := range i.Addresses {
		addrs = append(addrs, map[string]string{"type": a.Type, "address": a.Address})
	}
	m["addresses"] = addrs
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestContract(t *testing.T) {
	t.Parallel()
	providertest.Run(t, func(t *testing.T) (provider.Provider, func(string, provider.Instance), func(string)) {
		p := newProvider(t, newHost(t), nil)
		return p,
			func(name string, i provider.Instance) { writeMachine(t, p.cfg.Inventory, name, i) },
			func(name string) {
				if err := os.Remove(filepath.Join(p.cfg.Inventory, name+".json")); err != nil {
					t.Error(err)
				}
			}
	})
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := Config{Inventory: t.TempDir(), Cluster: "c", Addresses: netip.MustParsePrefix("10.90.0.0/24")}
	for name, edit := range map[string]func(*Config){
		"no range":          func(c *Config) { c.Addresses = netip.Prefix{} },
		"IPv6":              func(c *Config) { c.Addresses = netip.MustParsePrefix("fd00::/64") },
		"one address":       func(c *Config) { c.Addresses = netip.MustParsePrefix("10.90.0.1/32") },
		"no inventory":      func(c *Config) { c.Inventory += "/missing" },
		"inventory, a file": func(c *Config) { c.Inventory = "/dev/null" },
	} {
		cfg := good
		edit(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// What cannot be read is never reported as gone.
func TestUncertaintyIsNotAbsence(t *testing.T) {
	t.Parallel()
	p := newProvider(t, newHost(t), nil)
	if err := os.WriteFile(filepath.Join(p.cfg.Inventory, "broken.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Instance(t.Context(), "broken", ""); err == nil || errors.Is(err, provider.ErrNotFound) {
		t.Errorf("a broken file: %v", err)
	}
	for _, name := range []string{"", "..", "a/b", "../etc/passwd"} {
		if _, err := p.Instance(t.Context(), name, ""); err == nil || errors.Is(err, provider.ErrNotFound) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	if err := os.RemoveAll(p.cfg.Inventory); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Instance(t.Context(), "node-0", ""); err == nil || errors.Is(err, provider.ErrNotFound) {
		t.Errorf("without an inventory: %v", err)
	}
}

// A machine that writes its own file describes itself only, and the file must be a plain one.
func TestMachinesOfTheirOwn(t *testing.T) {
	t.Parallel()
	p := newProvider(t, newHost(t), nil)
	for _, name := range []string{"node-0", "node-1", "node-2", "node-3"} {
		if err := os.Mkdir(filepath.Join(p.cfg.Inventory, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	dir := func(name string) string { return filepath.Join(p.cfg.Inventory, name) }
	writeMachine(t, dir("node-0"), "node-0", provider.Instance{ProviderID: "local://node-0", Zone: "a"})
	writeMachine(t, dir("node-0"), "node-1", provider.Instance{ProviderID: "local://node-1", Zone: "wrong"})
	if i, err := p.Instance(t.Context(), "node-0", ""); err != nil || i.Zone != "a" {
		t.Errorf("node-0: %+v, %v", i, err)
	}
	if i, err := p.Instance(t.Context(), "node-1", ""); !errors.Is(err, provider.ErrNotFound) {
		t.Errorf("node-1, in the file of node-0: %+v, %v", i, err)
	}
	writeMachine(t, dir("node-1"), "node-1", provider.Instance{ProviderID: "local://node-0"})
	if i, err := p.Instance(t.Context(), "node-1", ""); err == nil || errors.Is(err, provider.ErrNotFound) {
		t.Errorf("node-1, whose file has the id of node-0: %+v, %v", i, err)
	}
	if err := os.Symlink(filepath.Join(dir("node-0"), "node-0.json"), filepath.Join(dir("node-2"), "node-2.json")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir("node-3"), "node-3.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"node-2", "node-3"} {
		if i, err := p.Instance(t.Context(), name, ""); err == nil || errors.Is(err, provider.ErrNotFound) {
			t.Errorf("%s, no plain file: %+v, %v", name, i, err)
		}
	}
}

func TestAddressesAreNeverGivenTwice(t *testing.T) {
	t.Parallel()
	inUse := map[string]netip.Addr{"old": netip.MustParseAddr("10.90.0.1")}
	p := newProvider(t, newHost(t), func(c *Config) {
		c.Addresses = netip.MustParsePrefix("10.90.0.0/29")
		c.InUse = func() map[string]netip.Addr { return inUse }
	})
	seen := map[netip.Addr]string{}
	for i := range 5 {
		id := fmt.Sprint("lb-", i)
		lb := providertest.Balancer(id)
		lb.Targets = nil
		addrs, err := p.EnsureLoadBalancer(t.Context(), lb)
		if err != nil {
			t.Fatal(err)
		}
		if other := seen[addrs[0]]; other != "" || addrs[0] == inUse["old"] {
			t.Errorf("%s has %s, as %q", id, addrs[0], other)
		}
		seen[addrs[0]] = id
	}
	lb := providertest.Balancer("one-too-many")
	lb.Targets = nil
	if _, err := p.EnsureLoadBalancer(t.Context(), lb); !errors.Is(err, provider.ErrExhausted) {
		t.Errorf("a sixth of five: %v", err)
	}
	// A Service keeps the address of its status when the program restarts.
	lb.ID = "old"
	if addrs, err := p.EnsureLoadBalancer(t.Context(), lb); err != nil || addrs[0] != inUse["old"] {
		t.Errorf("from the status: %v, %v", addrs, err)
	}
}

func TestTrafficReachesTheNodes(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	nodes := []string{"10.89.0.11", "10.89.0.12", "10.89.0.13"}
	for _, n := range nodes {
		h.node(n, "10.90.0.1")
	}
	p := newProvider(t, h, nil)
	lb := providertest.Balancer("a")
	ensure := func(targets ...provider.Target) {
		t.Helper()
		lb.Targets = targets
		if addrs, err := p.EnsureLoadBalancer(t.Context(), lb); err != nil || addrs[0].String() != "10.90.0.1" {
			t.Fatalf("%v, %v", addrs, err)
		}
	}
	target := func(i int, weight int32) provider.Target {
		return provider.Target{Name: fmt.Sprint("node-", i), Address: netip.MustParseAddr(nodes[i]), Weight: weight}
	}
	// One node, then another: the traffic follows.
	for i := range nodes {
		ensure(target(i, 0))
		if got, err := h.call("10.90.0.1"); err != nil || got != nodes[i] {
			t.Errorf("answered by %q, %v; want %s", got, err, nodes[i])
		}
	}
	// Several: the kernel has a weighted path to each.
	ensure(target(2, 1), target(0, 3), target(1, 0))
	routes, err := p.routes()
	if err != nil {
		t.Fatal(err)
	}
	r := routes[netip.MustParseAddr("10.90.0.1")]
	if !sameRoute(r, wantedRoute(netip.MustParseAddr("10.90.0.1"), lb.Targets)) || len(r.MultiPath) != 3 {
		t.Errorf("route: %+v", r)
	}
	if _, err := h.call("10.90.0.1"); err != nil {
		t.Error(err)
	}
	// None: callers get an error at once.
	ensure()
	if _, err := h.call("10.90.0.1"); !unreachable(err) {
		t.Errorf("without a node: %v", err)
	}
	if err := p.DeleteLoadBalancer(t.Context(), providertest.Cluster, "a"); err != nil {
		t.Fatal(err)
	}
	if routes, err := p.routes(); err != nil || len(routes) != 0 {
		t.Errorf("left behind: %v, %v", routes, err)
	}
}

// TestUnrouted checks that addresses are allocated and freed as usual, and that no
// route is added or changed.
func TestUnrouted(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	p := newProvider(t, h, func(c *Config) { c.Unrouted = true })
	h.run("ip", "route", "add", "unreachable", "10.90.0.77", "proto", "76")
	lb := providertest.Balancer("a")
	lb.Targets = []provider.Target{{Name: "node-0", Address: netip.MustParseAddr("10.89.0.11")}}
	if addrs, err := p.EnsureLoadBalancer(t.Context(), lb); err != nil || addrs[0].String() != "10.90.0.1" {
		t.Fatalf("%v, %v", addrs, err)
	}
	if err := p.repair(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.DeleteLoadBalancer(t.Context(), providertest.Cluster, "a"); err != nil {
		t.Fatal(err)
	}
	if routes, err := p.routes(); err != nil || len(routes) != 1 {
		t.Errorf("routes: %v, %v; want the one that was there", routes, err)
	}
	if addrs, err := p.EnsureLoadBalancer(t.Context(), providertest.Balancer("b")); err != nil || addrs[0].String() != "10.90.0.1" {
		t.Errorf("the address was not given again: %v, %v", addrs, err)
	}
}

func TestRoutesAreRepaired(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	inUse := map[string]netip.Addr{"elsewhere": netip.MustParseAddr("10.90.0.50")}
	p := newProvider(t, h, func(c *Config) { c.InUse = func() map[string]netip.Addr { return inUse } })
	lb := providertest.Balancer("a")
	addrs, err := p.EnsureLoadBalancer(t.Context(), lb)
	if err != nil {
		t.Fatal(err)
	}
	h.run("ip", "route", "del", addrs[0].String())
	h.run("ip", "route", "add", "unreachable", "10.90.0.77", "proto", "76")     // of no cluster
	h.run("ip", "route", "add", "unreachable", "10.90.0.50", "proto", "76")     // of a Service not ensured yet
	h.run("ip", "route", "add", "unreachable", "10.90.0.78", "proto", "static") // not ours
	h.run("ip", "route", "add", "unreachable", "198.51.100.7", "proto", "76")   // not in the range
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(time.Minute)
	for {
		routes, err := p.routes()
		if err != nil {
			t.Fatal(err)
		}
		_, mine := routes[addrs[0]]
		_, stray := routes[netip.MustParseAddr("10.90.0.77")]
		_, known := routes[netip.MustParseAddr("10.90.0.50")]
		if mine && !stray && known {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after a minute: %v", routes)
		}
		<-tick.C
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	for _, foreign := range []string{"10.90.0.78", "198.51.100.7"} {
		if out := h.run("ip", "route", "show", foreign); out == "" {
			t.Errorf("the foreign route %s is gone", foreign)
		}
	}
}

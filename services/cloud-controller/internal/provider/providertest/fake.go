package providertest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"keelson.dev/services/cloud-controller/internal/provider"
)

// Fake is an in-memory provider for tests of controllers. It passes the suite.
type Fake struct {
	mu        sync.Mutex
	machines  map[string]provider.Instance
	balancers map[string]provider.LoadBalancer
	addrs     map[string]netip.Addr
	failure   error
	ensures   map[string]int // by the load balancer's id
}

// NewFake returns an empty cloud with the addresses 10.90.0.1 to 10.90.0.254.
func NewFake() *Fake {
	return &Fake{machines: map[string]provider.Instance{}, balancers: map[string]provider.LoadBalancer{}, addrs: map[string]netip.Addr{}, ensures: map[string]int{}}
}

// Machine adds or changes a machine.
func (f *Fake) Machine(name string, i provider.Instance) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.machines[name] = i
}

// Remove removes a machine.
func (f *Fake) Remove(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.machines, name)
}

// Fail makes every call fail until it is called with nil.
func (f *Fake) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failure = err
}

// Balancer returns the last request for a load balancer.
func (f *Fake) Balancer(id string) (provider.LoadBalancer, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	lb, ok := f.balancers[id]
	return lb, ok
}

// Ensures returns the number of calls of EnsureLoadBalancer for a load balancer.
func (f *Fake) Ensures(id string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ensures[id]
}

// Instance returns a machine.
func (f *Fake) Instance(_ context.Context, name, providerID string) (provider.Instance, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return provider.Instance{}, f.failure
	}
	if providerID != "" && !strings.HasPrefix(providerID, "local://") {
		return provider.Instance{}, provider.ErrForeign
	}
	for n, i := range f.machines {
		if (providerID == "" && n == name) || (providerID != "" && i.ProviderID == providerID) {
			return i, nil
		}
	}
	return provider.Instance{}, provider.ErrNotFound
}

// EnsureLoadBalancer records the request.
func (f *Fake) EnsureLoadBalancer(_ context.Context, lb provider.LoadBalancer) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ensures[lb.ID]++
	switch {
	case f.failure != nil:
		return nil, f.failure
	case lb.ID == "" || lb.Cluster == "":
		return nil, provider.ErrInvalid
	}
	addr, err := f.allocate(lb)
	if err != nil {
		return nil, err
	}
	lb.Targets = slices.Clone(lb.Targets)
	f.balancers[lb.ID], f.addrs[lb.ID] = lb, addr
	return []netip.Addr{addr}, nil
}

func (f *Fake) allocate(lb provider.LoadBalancer) (netip.Addr, error) {
	holder := func(a netip.Addr) string {
		for id, addr := range f.addrs {
			if addr == a {
				return id
			}
		}
		return ""
	}
	pool := netip.MustParsePrefix("10.90.0.0/24")
	if r := lb.RequestedAddress; r.IsValid() {
		switch id := holder(r); {
		case !pool.Contains(r):
			return r, provider.ErrInvalid
		case id != "" && id != lb.ID:
			return r, provider.ErrTaken
		}
		return r, nil
	}
	if addr, ok := f.addrs[lb.ID]; ok {
		return addr, nil
	}
	for addr := pool.Addr().Next(); pool.Contains(addr); addr = addr.Next() {
		if holder(addr) == "" {
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("%s: %w", pool, provider.ErrExhausted)
}

// DeleteLoadBalancer removes a load balancer.
func (f *Fake) DeleteLoadBalancer(_ context.Context, _, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return f.failure
	}
	delete(f.balancers, id)
	delete(f.addrs, id)
	return nil
}

// ListLoadBalancers returns the load balancers of a cluster.
func (f *Fake) ListLoadBalancers(_ context.Context, cluster string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return nil, f.failure
	}
	ids := slices.Collect(maps.Keys(f.balancers))
	return slices.DeleteFunc(ids, func(id string) bool { return f.balancers[id].Cluster != cluster }), nil
}

// Package local is the provider for clusters on one machine. It does real work:
// instances come from an inventory that `keel` keeps, and load balancers are addresses
// that the machine's own kernel routes to the nodes, weighted over several of them
// (ECMP).
//
// Nothing is stored. The Services' status, which Config.InUse returns, holds which
// Service has which address. An address that was allocated but is not in a status yet
// is remembered in memory.
//
// It must never touch a route outside of its address range or one that another program
// made, nor report that an instance does not exist if it could not be looked up.
package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"keelson.dev/services/cloud-controller/internal/provider"
)

// Scheme is the prefix of provider ids.
const Scheme = "local://"

// Config of the provider.
type Config struct {
	// Inventory is the directory with a file NAME.json for each machine, or
	// NAME/NAME.json if each machine writes its own file and must not be able to write
	// another's.
	Inventory string
	// Cluster is the cluster of the load balancers.
	Cluster string
	// Addresses is the range for load balancers (IPv4).
	Addresses netip.Prefix
	// Unrouted allocates addresses without routing them: the nodes answer at the
	// addresses, and other hosts need routes of their own. It needs no privileges.
	Unrouted bool
	// InUse returns the addresses of the range that Services have, by the uid of the Service,
	// from their status.
	InUse func() map[string]netip.Addr
	// Log may be nil.
	Log *slog.Logger
}

// Provider is the local cloud. Run keeps its routes in place.
type Provider struct {
	cfg  Config
	log  *slog.Logger
	wake chan struct{}

	kernel    *netlink.Handle // of the network namespace that New was called in
	mu        sync.Mutex
	balancers map[string]balancer // by id; those ensured in this process
}

type balancer struct {
	address netip.Addr
	targets []provider.Target
}

// New checks the configuration.
func New(cfg Config) (*Provider, error) {
	if !cfg.Addresses.IsValid() || !cfg.Addresses.Addr().Is4() || cfg.Addresses.Bits() > 30 {
		return nil, fmt.Errorf("load balancer range must be an IPv4 prefix of at most 30 bits, got %q", cfg.Addresses)
	}
	info, err := os.Stat(cfg.Inventory)
	if err == nil && !info.IsDir() {
		err = errors.New("not a directory")
	}
	if err != nil {
		return nil, fmt.Errorf("inventory: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	if cfg.InUse == nil {
		cfg.InUse = func() map[string]netip.Addr { return nil }
	}
	cfg.Addresses = cfg.Addresses.Masked()
	kernel, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &Provider{cfg: cfg, log: cfg.Log, wake: make(chan struct{}, 1), kernel: kernel, balancers: map[string]balancer{}}, nil
}

// Close closes the connection to the kernel. Routes stay.
func (p *Provider) Close() { p.kernel.Close() }

// machine is a file of the inventory.
type machine struct {
	Name         string `json:"name"`
	ProviderID   string `json:"providerID"`
	Zone         string `json:"zone"`
	Region       string `json:"region"`
	InstanceType string `json:"instanceType"`
	Addresses    []struct {
		Type    string `json:"type"`
		Address string `json:"address"`
	} `json:"addresses"`
	Shutdown bool `json:"shutdown"`
}

// Instance reads a machine's file. The last part of a provider id is the
// machine's name.
func (p *Provider) Instance(_ context.Context, name, providerID string) (provider.Instance, error) {
	if providerID != "" {
		rest, ok := strings.CutPrefix(providerID, Scheme)
		if !ok {
			return provider.Instance{}, fmt.Errorf("%s: %w", providerID, provider.ErrForeign)
		}
		name = rest[strings.LastIndexByte(rest, '/')+1:]
	}
	if name == "" || strings.ContainsAny(name, "/\\\x00") || name == "." || name == ".." {
		return provider.Instance{}, fmt.Errorf("machine %q: %w", name, provider.ErrForeign)
	}
	b, err := readBounded(filepath.Join(p.cfg.Inventory, name+".json"))
	own := errors.Is(err, fs.ErrNotExist)
	if own {
		b, err = readBounded(filepath.Join(p.cfg.Inventory, name, name+".json"))
	}
	if errors.Is(err, fs.ErrNotExist) {
		// A missing file means that the machine does not exist only if the inventory
		// exists.
		if _, err := os.Stat(p.cfg.Inventory); err != nil {
			return provider.Instance{}, fmt.Errorf("inventory: %w", err)
		}
		return provider.Instance{}, fmt.Errorf("machine %s: %w", name, provider.ErrNotFound)
	}
	if err != nil {
		return provider.Instance{}, fmt.Errorf("machine %s: %w", name, err)
	}
	var m machine
	if err := json.Unmarshal(b, &m); err != nil {
		return provider.Instance{}, fmt.Errorf("machine %s: %w", name, err)
	}
	if m.ProviderID == "" {
		m.ProviderID = Scheme + name
	}
	if own && m.ProviderID != Scheme+name {
		return provider.Instance{}, fmt.Errorf("machine %s says that it is %q: %w", name, m.ProviderID, provider.ErrForeign)
	}
	if providerID != "" && m.ProviderID != providerID {
		// Another machine has this name now.
		return provider.Instance{}, fmt.Errorf("machine %s: %w", providerID, provider.ErrNotFound)
	}
	i := provider.Instance{ProviderID: m.ProviderID, Zone: m.Zone, Region: m.Region, InstanceType: m.InstanceType, Shutdown: m.Shutdown}
	for _, a := range m.Addresses {
		i.Addresses = append(i.Addresses, provider.Address{Type: a.Type, Address: a.Address})
	}
	return i, nil
}

// maxMachine is the size limit of a machine's file.
const maxMachine = 64 << 10

// readBounded reads a regular file of limited size. It follows no link, and does not
// block on a pipe, because a machine that writes its own file is not trusted.
func readBounded(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxMachine {
		return nil, fmt.Errorf("%s: want a file of at most %d bytes", path, maxMachine)
	}
	return io.ReadAll(io.LimitReader(f, maxMachine))
}

// EnsureLoadBalancer gives the load balancer an address and routes it.
func (p *Provider) EnsureLoadBalancer(_ context.Context, lb provider.LoadBalancer) ([]netip.Addr, error) {
	if lb.ID == "" || lb.Cluster != p.cfg.Cluster {
		return nil, fmt.Errorf("load balancer %q of cluster %q: %w", lb.ID, lb.Cluster, provider.ErrInvalid)
	}
	for _, t := range lb.Targets {
		if !t.Address.Is4() {
			return nil, fmt.Errorf("address %s of node %s is not IPv4: %w", t.Address, t.Name, provider.ErrInvalid)
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	addr, err := p.allocate(lb.ID, lb.RequestedAddress)
	if err != nil {
		return nil, err
	}
	before, had := p.balancers[lb.ID]
	p.balancers[lb.ID] = balancer{addr, slices.Clone(lb.Targets)}
	if had && before.address != addr {
		p.nudge() // Run removes the route of the old address
	}
	if err := p.ensureRoute(addr, lb.Targets); err != nil {
		return nil, err
	}
	return []netip.Addr{addr}, nil
}

// allocate returns the address for a load balancer: the requested one, or else the one
// that it has, or else the first free one.
func (p *Provider) allocate(id string, requested netip.Addr) (netip.Addr, error) {
	inUse := p.cfg.InUse()
	owner := map[netip.Addr]string{}
	for other, addr := range inUse {
		owner[addr] = other
	}
	for other, b := range p.balancers {
		owner[b.address] = other
	}
	if requested.IsValid() {
		switch other := owner[requested]; {
		case !p.usable(requested):
			return netip.Addr{}, fmt.Errorf("address %s is not in %s: %w", requested, p.cfg.Addresses, provider.ErrInvalid)
		case other != "" && other != id:
			return netip.Addr{}, fmt.Errorf("address %s: %w", requested, provider.ErrTaken)
		}
		return requested, nil
	}
	if b, ok := p.balancers[id]; ok {
		return b.address, nil
	}
	if addr, ok := inUse[id]; ok && p.usable(addr) && owner[addr] == id {
		return addr, nil
	}
	for addr := p.cfg.Addresses.Addr().Next(); p.usable(addr); addr = addr.Next() {
		if owner[addr] == "" {
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("range %s: %w", p.cfg.Addresses, provider.ErrExhausted)
}

// usable reports whether an address is neither the range's network address nor its
// broadcast address.
func (p *Provider) usable(addr netip.Addr) bool {
	return p.cfg.Addresses.Contains(addr) && addr != p.cfg.Addresses.Addr() && p.cfg.Addresses.Contains(addr.Next())
}

// DeleteLoadBalancer removes the route and frees the address.
func (p *Provider) DeleteLoadBalancer(_ context.Context, cluster, id string) error {
	if cluster != p.cfg.Cluster {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var addrs []netip.Addr
	if b, ok := p.balancers[id]; ok {
		addrs = append(addrs, b.address)
	}
	if addr, ok := p.cfg.InUse()[id]; ok && p.usable(addr) && !slices.Contains(addrs, addr) {
		addrs = append(addrs, addr)
	}
	for _, addr := range addrs {
		if err := p.removeRoute(addr); err != nil {
			return err
		}
	}
	delete(p.balancers, id)
	return nil
}

// ListLoadBalancers returns the load balancers that this process ensured. Routes left
// behind by an earlier process have no id; Run removes them.
func (p *Provider) ListLoadBalancers(_ context.Context, cluster string) ([]string, error) {
	if cluster != p.cfg.Cluster {
		return nil, nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]string, 0, len(p.balancers))
	for id := range p.balancers {
		out = append(out, id)
	}
	return out, nil
}

func (p *Provider) nudge() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

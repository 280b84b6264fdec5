package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"keelson.dev/services/cloud-controller/internal/provider"
)

// routeProtocol marks the routes of this provider (`ip route show proto 76`).
const routeProtocol = 76

// repairEvery is how often routes are compared with the desired ones.
const repairEvery = 5 * time.Second

// maxWeight is the largest weight that the kernel accepts for one next hop.
const maxWeight = 256

// Begin is called at the beginning of each term of leadership. It drops the allocations
// that no Service's status shows, because another process may have led since they were
// made.
func (p *Provider) Begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	inUse := p.cfg.InUse()
	for id, b := range p.balancers {
		if inUse[id] != b.address {
			delete(p.balancers, id)
		}
	}
}

// Run repairs routes that were removed or changed, and removes those of addresses that
// no Service has, until ctx ends. It leaves the routes in place at the end, so that
// traffic is not interrupted while the program restarts. Config.InUse must be complete
// when Run is called.
func (p *Provider) Run(ctx context.Context) error {
	tick := time.NewTicker(repairEvery)
	defer tick.Stop()
	for {
		if err := p.repair(ctx); err != nil {
			p.log.ErrorContext(ctx, "load balancer routes were not repaired", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.wake:
		}
	}
}

// repair is one pass of Run.
func (p *Provider) repair(ctx context.Context) error {
	if p.cfg.Unrouted {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	present, err := p.routes()
	if err != nil {
		return err
	}
	keep := map[netip.Addr]bool{}
	for _, addr := range p.cfg.InUse() {
		keep[addr] = true
	}
	var errs []error
	for _, b := range p.balancers {
		keep[b.address] = true
		if r, ok := present[b.address]; ok && sameRoute(r, wantedRoute(b.address, b.targets)) {
			continue
		}
		p.log.InfoContext(ctx, "load balancer route is restored", "address", b.address.String())
		errs = append(errs, p.ensureRoute(b.address, b.targets))
	}
	for addr := range present {
		if !keep[addr] {
			p.log.InfoContext(ctx, "route of a load balancer that is gone is removed", "address", addr.String())
			errs = append(errs, p.removeRoute(addr))
		}
	}
	return errors.Join(errs...)
}

// routes returns this provider's routes within the range, by address.
func (p *Provider) routes() (map[netip.Addr]netlink.Route, error) {
	list, err := p.kernel.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	out := map[netip.Addr]netlink.Route{}
	for _, r := range list {
		if r.Dst == nil {
			continue
		}
		ones, _ := r.Dst.Mask.Size()
		addr, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		if ok && ones == 32 && p.cfg.Addresses.Contains(addr) {
			out[addr] = r
		}
	}
	return out, nil
}

// wantedRoute returns the route to all targets, by weight. Without targets the address
// is unreachable, so that callers are refused at once and nothing leaves by a default
// route.
func wantedRoute(addr netip.Addr, targets []provider.Target) netlink.Route {
	r := netlink.Route{Dst: hostNet(addr), Protocol: routeProtocol}
	list := slices.Clone(targets)
	slices.SortFunc(list, func(a, b provider.Target) int { return a.Address.Compare(b.Address) })
	list = slices.CompactFunc(list, func(a, b provider.Target) bool { return a.Address == b.Address })
	switch len(list) {
	case 0:
		r.Type = unix.RTN_UNREACHABLE
	case 1:
		r.Gw = list[0].Address.AsSlice()
	default:
		for _, t := range list {
			weight := min(max(int(t.Weight), 1), maxWeight)
			r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{Gw: t.Address.AsSlice(), Hops: weight - 1})
		}
	}
	return r
}

func (p *Provider) ensureRoute(addr netip.Addr, targets []provider.Target) error {
	if p.cfg.Unrouted {
		return nil
	}
	r := wantedRoute(addr, targets)
	if err := p.kernel.RouteReplace(&r); err != nil {
		return fmt.Errorf("route %s to %d nodes: %w", addr, len(targets), err)
	}
	return nil
}

func (p *Provider) removeRoute(addr netip.Addr) error {
	if p.cfg.Unrouted {
		return nil
	}
	list, err := p.kernel.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: hostNet(addr), Protocol: routeProtocol},
		netlink.RT_FILTER_DST|netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("route %s: %w", addr, err)
	}
	for _, r := range list {
		if err := p.kernel.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove route %s: %w", addr, err)
		}
	}
	return nil
}

// sameRoute reports whether a route of the kernel equals a wanted one in what matters.
func sameRoute(got, want netlink.Route) bool {
	if (got.Type == unix.RTN_UNREACHABLE) != (want.Type == unix.RTN_UNREACHABLE) || !got.Gw.Equal(want.Gw) || len(got.MultiPath) != len(want.MultiPath) {
		return false
	}
	byGateway := func(a, b *netlink.NexthopInfo) int { return cmp.Compare(string(a.Gw.To4()), string(b.Gw.To4())) }
	a, b := slices.SortedFunc(slices.Values(got.MultiPath), byGateway), slices.SortedFunc(slices.Values(want.MultiPath), byGateway)
	return slices.EqualFunc(a, b, func(x, y *netlink.NexthopInfo) bool { return x.Gw.Equal(y.Gw) && x.Hops == y.Hops })
}

func hostNet(addr netip.Addr) *net.IPNet {
	return &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}
}

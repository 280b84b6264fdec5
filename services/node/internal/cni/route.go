package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"keelson.dev/services/node/internal/link"
)

// routeProtocol marks our routes (`ip route show proto 75`), to distinguish stale ones from
// an operator's.
const routeProtocol = 75

// lastResort is the metric of unreachable routes: any other route takes precedence.
const lastResort = 1 << 20

// wantedRoute is a desired route. Without via it is an unreachable route.
type wantedRoute struct {
	dst     netip.Prefix
	via     netip.Addr
	overlay bool
}

// planRoutes decides how each peer's pods are reached: through the peer itself if it is on
// one of this node's networks (onLink), otherwise through the overlay. Unused pod addresses
// are unreachable, so that packets to them do not leave by a default route.
func planRoutes(clusterCIDR netip.Prefix, peers []peer, onLink func(netip.Addr) bool) []wantedRoute {
	out := []wantedRoute{{dst: clusterCIDR.Masked()}}
	for _, p := range peers {
		for _, cidr := range p.podCIDRs {
			r := wantedRoute{dst: cidr, via: p.address}
			if !onLink(p.address) {
				r.overlay = true
			}
			out = append(out, r)
		}
	}
	return out
}

// routes updates the kernel's routes to match the peers.
func routes(ctx context.Context, cfg RunConfig, peers []peer, log *slog.Logger) error {
	want := planRoutes(cfg.ClusterCIDR, peers, onLink)
	var errs []error
	var o *overlay
	seen := map[netip.Prefix]bool{}
	for _, w := range want {
		seen[w.dst] = true
		r := &netlink.Route{Dst: link.Network(w.dst), Protocol: routeProtocol}
		switch {
		case !w.via.IsValid():
			r.Type, r.Priority = unix.RTN_UNREACHABLE, lastResort
		case w.overlay:
			if o == nil {
				var err error
				if o, err = ensureOverlay(cfg); err != nil {
					return errors.Join(append(errs, err)...)
				}
			}
			if err := o.reach(w, r); err != nil {
				errs = append(errs, err)
				continue
			}
		default:
			r.Gw = w.via.AsSlice()
		}
		if err := netlink.RouteReplace(r); err != nil {
			errs = append(errs, fmt.Errorf("route %s via %s: %w", w.dst, w.via, err))
		}
	}
	stale, err := ourRoutes()
	errs = append(errs, err)
	for _, r := range stale {
		dst, ok := prefixOf(r.Dst)
		if !ok || seen[dst] || r.Dst.String() == cfg.ServiceCIDR.Masked().String() {
			continue
		}
		log.InfoContext(ctx, "removing the route to a node that is gone", "destination", dst.String())
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route %s: %w", dst, err))
		}
	}
	return errors.Join(errs...)
}

// serviceRoute routes the Services' range to an interface of this node, with the node's
// address as the source.
func serviceRoute(cfg RunConfig) error {
	l, err := link.Ensure(LinkName)
	if err != nil {
		return err
	}
	r := &netlink.Route{
		Dst: link.Network(cfg.ServiceCIDR.Masked()), LinkIndex: l.Attrs().Index,
		Scope: netlink.SCOPE_LINK, Src: cfg.NodeIP.AsSlice(), Protocol: routeProtocol,
	}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("route %s to %s: %w", cfg.ServiceCIDR, LinkName, err)
	}
	return nil
}

// onLink reports whether an address is on a network that this node is attached to.
func onLink(addr netip.Addr) bool {
	list, err := netlink.RouteGet(addr.AsSlice())
	return err == nil && len(list) > 0 && list[0].Gw == nil
}

func ourRoutes() ([]netlink.Route, error) {
	list, err := link.Dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return list, nil
}

func removeRoutes() error {
	list, err := ourRoutes()
	errs := []error{err}
	for _, r := range list {
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("remove route %s: %w", r.Dst, err))
		}
	}
	return errors.Join(errs...)
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr.Unmap(), ones), true
}

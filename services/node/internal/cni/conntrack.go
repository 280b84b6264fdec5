package cni

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"keelson.dev/services/node/internal/conntrack"
	"keelson.dev/services/node/internal/link"
)

// endFlows ends UDP flows to host ports that a new flow would not take: flows to a pod that
// had the port before, or to the node itself from a time when no pod had it. A client that
// keeps sending from the same port would renew such a flow forever. Only the ports in
// changed are considered.
func endFlows(changed map[uint16]bool, current []HostPort) error {
	if len(changed) == 0 {
		return nil
	}
	addrs, err := link.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("addresses: %w", err)
	}
	filter := &flowFilter{changed: changed, current: current, local: map[netip.Addr]bool{}}
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			filter.local[addr] = true
		}
	}
	if err := conntrack.EndUDP(filter.stale); err != nil {
		return fmt.Errorf("end flows to host ports: %w", err)
	}
	return nil
}

// flowFilter selects the flows to end.
type flowFilter struct {
	changed map[uint16]bool
	current []HostPort
	local   map[netip.Addr]bool
}

// stale reports whether a flow to front that is answered by target must end.
func (f *flowFilter) stale(front, target netip.AddrPort) bool {
	if !f.changed[front.Port()] || !f.local[front.Addr()] && !front.Addr().IsLoopback() {
		return false
	}
	var best *HostPort
	for i := range f.current {
		p := &f.current[i]
		if p.Protocol != "udp" || p.HostPort != front.Port() || p.HostIP.IsValid() && p.HostIP != front.Addr() {
			continue
		}
		if best == nil || p.HostIP.IsValid() {
			best = p // a port bound to one address takes precedence over one for all addresses
		}
	}
	if best == nil {
		return target != front // a program of the node may listen there now
	}
	return target != best.Target
}

// udpChanges returns the UDP host ports whose targets differ.
func udpChanges(before, after []HostPort) map[uint16]bool {
	udp := func(list []HostPort) map[uint16][]HostPort {
		out := map[uint16][]HostPort{}
		for _, p := range list {
			if strings.EqualFold(p.Protocol, "udp") {
				out[p.HostPort] = append(out[p.HostPort], p)
			}
		}
		for _, l := range out {
			slices.SortFunc(l, func(a, b HostPort) int { return cmp.Or(a.HostIP.Compare(b.HostIP), a.Target.Compare(b.Target)) })
		}
		return out
	}
	old, now := udp(before), udp(after)
	changed := map[uint16]bool{}
	for port, list := range now {
		if !slices.Equal(list, old[port]) {
			changed[port] = true
		}
	}
	for port := range old {
		if now[port] == nil {
			changed[port] = true
		}
	}
	return changed
}

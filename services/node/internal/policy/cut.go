package policy

import (
	"context"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/conntrack"
	"keelson.dev/services/node/internal/link"
)

// cut ends the connections that the rules forbid. If that fails, it is tried again by the next pass.
func (s *syncer) cut(ctx context.Context, rules *Ruleset, a *Applied) {
	own, err := ownAddresses()
	if err == nil {
		a.Cut = 0
		err = conntrack.End(func(f conntrack.Flow) bool {
			// The node's own traffic passes none of the rules.
			if own[f.From] || own[f.To.Addr()] || rules.Allows(flowOf(f)) {
				return false
			}
			a.Cut++
			return true
		})
	}
	if err != nil {
		s.uncut = rules
		s.e.log.WarnContext(ctx, "connections that a network policy forbids were not ended, will retry", "error", err)
		return
	}
	s.uncut = nil
}

func flowOf(f conntrack.Flow) Flow {
	out := Flow{From: f.From, To: f.To.Addr(), Port: f.To.Port()}
	switch f.Protocol {
	case unix.IPPROTO_TCP:
		out.Protocol = corev1.ProtocolTCP
	case unix.IPPROTO_UDP:
		out.Protocol = corev1.ProtocolUDP
	case unix.IPPROTO_SCTP:
		out.Protocol = corev1.ProtocolSCTP
	}
	return out
}

// ownAddresses returns the addresses of this node.
func ownAddresses() (map[netip.Addr]bool, error) {
	addrs, err := link.Dump(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, err
	}
	own := make(map[netip.Addr]bool, len(addrs))
	for _, a := range addrs {
		if addr, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			own[addr] = true
		}
	}
	return own, nil
}

// Package conntrack ends connections that the kernel tracks: UDP flows that it would otherwise keep
// sending to a former target, because UDP has no end of connection and each datagram renews its
// flow, and connections of any protocol that a network policy forbids.
//
// It must never end a connection that its caller did not choose.
package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Stale reports whether a UDP flow must end. front is the address that the client sends to,
// and target is the address that answers.
type Stale func(front, target netip.AddrPort) bool

// attempts is how often a dump is tried if concurrent changes interrupt it: an interrupted
// dump may have missed a flow.
const attempts = 3

// EndUDP ends the IPv4 UDP flows for which stale returns true.
func EndUDP(stale Stale) error {
	var err error
	for range attempts {
		if _, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, stale); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	return nil
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s Stale) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	dst, ok1 := netip.AddrFromSlice(flow.Forward.DstIP.To4())
	src, ok2 := netip.AddrFromSlice(flow.Reverse.SrcIP.To4())
	return ok1 && ok2 && s(netip.AddrPortFrom(dst, flow.Forward.DstPort), netip.AddrPortFrom(src, flow.Reverse.SrcPort))
}

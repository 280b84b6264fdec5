package conntrack

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Flow is a connection of any protocol.
type Flow struct {
	Protocol uint8
	// From is the address that the connection came from, and To what answers it, after the
	// translation of its destination. To has port 0 if the protocol has no ports.
	From netip.Addr
	To   netip.AddrPort
}

// End ends the IPv4 connections for which end returns true. It may be called more than once for a
// connection.
func End(end func(Flow) bool) error {
	var err error
	for range attempts {
		if _, err = netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter(end)); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	return nil
}

type filter func(Flow) bool

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f filter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	from, ok1 := netip.AddrFromSlice(flow.Forward.SrcIP.To4())
	to, ok2 := netip.AddrFromSlice(flow.Reverse.SrcIP.To4())
	return ok1 && ok2 && f(Flow{flow.Forward.Protocol, from, netip.AddrPortFrom(to, flow.Reverse.SrcPort)})
}

package proxy

import (
	"net/netip"
	"slices"

	"keelson.dev/services/node/internal/conntrack"
)

// cleanConntrack ends UDP flows that a new flow would not take: flows to a former endpoint,
// or to a Service's own address from a time when it had no endpoint. UDP has no end of
// connection, so such a flow would last as long as the client keeps sending. TCP
// connections are left alone. It looks at the flows only if a UDP port's endpoints have
// changed.
func cleanConntrack(s *syncer) error {
	if !s.udpChanged {
		return nil
	}
	filter := newUDPFilter(s.node, s.state, s.gone)
	if len(filter.byAddr)+len(filter.byPort) == 0 {
		s.udpChanged = false
		return nil
	}
	if err := conntrack.EndUDP(filter.stale); err != nil {
		return err
	}
	s.udpChanged = false
	s.gone = nil
	return nil
}

// udpFilter selects the flows to end.
type udpFilter struct {
	nodeAddresses []netip.Addr
	byAddr        map[netip.AddrPort]udpPort
	byPort        map[uint16]udpPort
}

func newUDPFilter(node Node, st *state, gone []udpPort) *udpFilter {
	f := &udpFilter{nodeAddresses: node.Addresses, byAddr: map[netip.AddrPort]udpPort{}, byPort: map[uint16]udpPort{}}
	add := func(list []udpPort) {
		for _, u := range list {
			if u.addr.IsValid() {
				f.byAddr[netip.AddrPortFrom(u.addr, u.port)] = u
			} else {
				f.byPort[u.port] = u
			}
		}
	}
	add(gone) // a Service that has taken over such a front replaces it
	for _, frag := range st.fragments {
		add(frag.udp)
	}
	return f
}

// stale reports whether a flow to front that is answered by target must end.
func (f *udpFilter) stale(front, target netip.AddrPort) bool {
	u, ok := f.byAddr[front]
	if !ok {
		if u, ok = f.byPort[front.Port()]; !ok || !slices.Contains(f.nodeAddresses, front.Addr()) {
			return false
		}
	}
	_, current := u.targets[target]
	return !current
}

package proxy

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// endpoint is one address and port of a Service's port.
type endpoint struct {
	addr        netip.AddrPort
	local       bool
	ready       bool
	serving     bool
	terminating bool
	forZones    []string
	forNodes    []string
}

// endpointsFor collects the endpoints of one port of a Service from its slices, sorted by
// address. An endpoint that is in two slices, because it is being moved, is used once, with
// the better of its conditions.
func endpointsFor(node Node, port corev1.ServicePort, list []*discoveryv1.EndpointSlice) []endpoint {
	best := map[netip.AddrPort]endpoint{}
	for _, slice := range list {
		if slice.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		number, ok := slicePort(slice, port)
		if !ok {
			continue
		}
		for i := range slice.Endpoints {
			ep, ok := endpointOf(node, &slice.Endpoints[i], number)
			if !ok {
				continue
			}
			if old, seen := best[ep.addr]; seen && old.rank() >= ep.rank() {
				continue
			}
			best[ep.addr] = ep
		}
	}
	out := make([]endpoint, 0, len(best))
	for _, ep := range best {
		out = append(out, ep)
	}
	slices.SortFunc(out, func(a, b endpoint) int {
		return cmp.Or(a.addr.Addr().Compare(b.addr.Addr()), cmp.Compare(a.addr.Port(), b.addr.Port()))
	})
	return out
}

func slicePort(slice *discoveryv1.EndpointSlice, port corev1.ServicePort) (uint16, bool) {
	for _, p := range slice.Ports {
		name, protocol := "", corev1.ProtocolTCP
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		if name != port.Name || protocol != protocolOf(port) || p.Port == nil || *p.Port <= 0 || *p.Port > 65535 {
			continue
		}
		return uint16(*p.Port), true
	}
	return 0, false
}

func endpointOf(node Node, e *discoveryv1.Endpoint, port uint16) (endpoint, bool) {
	if len(e.Addresses) == 0 {
		return endpoint{}, false
	}
	addr, err := netip.ParseAddr(e.Addresses[0])
	if err != nil || !addr.Is4() {
		return endpoint{}, false
	}
	ep := endpoint{
		addr:  netip.AddrPortFrom(addr, port),
		local: e.NodeName != nil && *e.NodeName == node.Name,
		ready: e.Conditions.Ready == nil || *e.Conditions.Ready,
	}
	ep.serving = ep.ready
	if e.Conditions.Serving != nil {
		ep.serving = *e.Conditions.Serving
	}
	ep.terminating = e.Conditions.Terminating != nil && *e.Conditions.Terminating
	if e.Hints != nil {
		for _, z := range e.Hints.ForZones {
			ep.forZones = append(ep.forZones, z.Name)
		}
		for _, n := range e.Hints.ForNodes {
			ep.forNodes = append(ep.forNodes, n.Name)
		}
	}
	return ep, true
}

func (e endpoint) rank() int {
	switch {
	case e.ready:
		return 2
	case e.serving:
		return 1
	default:
		return 0
	}
}

// usable returns the endpoints for new connections: the ready ones or, if there are none,
// those that are terminating but still serving (KEP-1669). keep, unless nil, selects the
// endpoints to consider.
func usable(all []endpoint, keep func(endpoint) bool) []endpoint {
	var ready, draining []endpoint
	for _, ep := range all {
		switch {
		case keep != nil && !keep(ep):
		case ep.ready:
			ready = append(ready, ep)
		case ep.serving && ep.terminating:
			draining = append(draining, ep)
		}
	}
	if len(ready) > 0 {
		return ready
	}
	return draining
}

// nearby narrows endpoints to those with hints for this node or, failing that, for its zone
// (KEP-2433, KEP-3015). Hints are used only if every endpoint has them and at least one is
// for this node or zone: incomplete hints would overload the endpoints that have them.
func nearby(node Node, ready []endpoint) []endpoint {
	if near := hinted(ready, node.Name, func(e endpoint) []string { return e.forNodes }); near != nil {
		return near
	}
	if near := hinted(ready, node.Zone, func(e endpoint) []string { return e.forZones }); near != nil {
		return near
	}
	return ready
}

func hinted(ready []endpoint, here string, hints func(endpoint) []string) []endpoint {
	if here == "" {
		return nil
	}
	var near []endpoint
	for _, ep := range ready {
		h := hints(ep)
		if len(h) == 0 {
			return nil
		}
		if slices.Contains(h, here) {
			near = append(near, ep)
		}
	}
	return near
}

func isLocal(e endpoint) bool { return e.local }

func protocolOf(p corev1.ServicePort) corev1.Protocol {
	if p.Protocol == "" {
		return corev1.ProtocolTCP
	}
	return p.Protocol
}

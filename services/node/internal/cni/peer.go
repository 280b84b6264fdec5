package cni

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// simulatedLabel marks Nodes that have no machine and no pods of flesh.
const simulatedLabel = "keelson.dev/simulated"

// peer is another node: where it is and which pods it has.
type peer struct {
	name     string
	address  netip.Addr
	podCIDRs []netip.Prefix
}

// peersOf lists the other nodes that have an address, by name.
func peersOf(self string, nodes []*corev1.Node) []peer {
	var out []peer
	for _, n := range nodes {
		if n.Name == self || n.Labels[simulatedLabel] == "true" {
			continue
		}
		p := peer{name: n.Name}
		for _, a := range n.Status.Addresses {
			addr, err := netip.ParseAddr(a.Address)
			if a.Type == corev1.NodeInternalIP && err == nil && addr.Is4() && !p.address.IsValid() {
				p.address = addr
			}
		}
		if !p.address.IsValid() {
			continue
		}
		for _, s := range append([]string{n.Spec.PodCIDR}, n.Spec.PodCIDRs...) {
			if r, err := netip.ParsePrefix(s); err == nil && r.Addr().Is4() && !slices.Contains(p.podCIDRs, r.Masked()) {
				p.podCIDRs = append(p.podCIDRs, r.Masked())
			}
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b peer) int { return strings.Compare(a.name, b.name) })
	return out
}

// sameNetwork says that two states of a Node differ in nothing that matters here,
// as almost all do: they are heartbeats.
func sameNetwork(a, b *corev1.Node) bool {
	return a.Spec.PodCIDR == b.Spec.PodCIDR && slices.Equal(a.Spec.PodCIDRs, b.Spec.PodCIDRs) &&
		slices.Equal(a.Status.Addresses, b.Status.Addresses) && a.Labels[simulatedLabel] == b.Labels[simulatedLabel]
}

func nodeAddresses(self netip.Addr, peers []peer) []netip.Addr {
	out := []netip.Addr{self}
	for _, p := range peers {
		out = append(out, p.address)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

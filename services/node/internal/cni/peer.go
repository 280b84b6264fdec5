package cni

import (
	"cmp"
	"fmt"
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

// peersOf lists the other nodes that have an address, by name, each with the ranges
// that are its own to receive: inside the cluster's range, and free of what this
// node and older nodes have. So a Node that claims what is another's, whoever wrote
// it, changes no route but its own. What was refused is returned too.
func peersOf(cfg *RunConfig, nodes []*corev1.Node) (peers []peer, refused []string) {
	type held struct {
		node  string
		cidrs netip.Prefix
	}
	taken := []held{{cfg.NodeName, cfg.PodCIDR}}
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, func(a, b *corev1.Node) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	for _, n := range nodes {
		if n.Name == cfg.NodeName || n.Labels[simulatedLabel] == "true" {
			continue
		}
		p := peer{name: n.Name, address: peerAddress(cfg, n)}
		for _, r := range podRanges(n) {
			owner := slices.IndexFunc(taken, func(t held) bool { return t.node != n.Name && t.cidrs.Overlaps(r) })
			switch {
			case r.Bits() < cfg.ClusterCIDR.Bits() || !cfg.ClusterCIDR.Contains(r.Addr()):
				refused = append(refused, fmt.Sprintf("%s of node %s is outside of the cluster's range %s", r, n.Name, cfg.ClusterCIDR))
			case owner >= 0:
				refused = append(refused, fmt.Sprintf("%s of node %s overlaps %s of node %s", r, n.Name, taken[owner].cidrs, taken[owner].node))
			default:
				taken = append(taken, held{n.Name, r})
				p.podCIDRs = append(p.podCIDRs, r)
			}
		}
		if p.address.IsValid() {
			peers = append(peers, p)
		}
	}
	slices.SortFunc(peers, func(a, b peer) int { return strings.Compare(a.name, b.name) })
	return peers, refused
}

// peerAddress is a Node's first internal IPv4 address that can be another
// machine's; the zero Addr if there is none.
func peerAddress(cfg *RunConfig, n *corev1.Node) netip.Addr {
	for _, a := range n.Status.Addresses {
		addr, err := netip.ParseAddr(a.Address)
		if a.Type != corev1.NodeInternalIP || err != nil || !addr.Is4() {
			continue
		}
		if addr == cfg.NodeIP || addr.IsLoopback() || addr.IsMulticast() || addr.IsUnspecified() || cfg.ClusterCIDR.Contains(addr) || cfg.ServiceCIDR.Contains(addr) {
			continue
		}
		return addr
	}
	return netip.Addr{}
}

// podRanges are the IPv4 ranges that a Node's spec names.
func podRanges(n *corev1.Node) (out []netip.Prefix) {
	for _, s := range append([]string{n.Spec.PodCIDR}, n.Spec.PodCIDRs...) {
		if r, err := netip.ParsePrefix(s); err == nil && r.Addr().Is4() && !slices.Contains(out, r.Masked()) {
			out = append(out, r.Masked())
		}
	}
	return out
}

// sameNetwork says that two states of a Node differ in nothing that matters here,
// as almost all do: they are heartbeats.
func sameNetwork(a, b *corev1.Node) bool {
	return a.UID == b.UID && a.Spec.PodCIDR == b.Spec.PodCIDR && slices.Equal(a.Spec.PodCIDRs, b.Spec.PodCIDRs) &&
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

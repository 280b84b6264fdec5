package cni

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// simulatedLabel marks Nodes that have neither a machine nor real pods.
const simulatedLabel = "keelson.dev/simulated"

// peer is another node with its address and pod ranges.
type peer struct {
	name     string
	address  netip.Addr
	podCIDRs []netip.Prefix
}

// peersOf returns the other nodes that have an address, sorted by name, each with the pod
// ranges that it may receive: ranges inside the cluster's range that do not overlap those
// of this node or of older nodes. So a Node that claims another node's range, whichever client wrote
// that, affects no route but its own. The same applies to addresses, which nodes set
// themselves: an address stays with the node that already held it as long as that node
// claims it; otherwise the oldest node that claims it gets it. held is updated. refused
// describes the ignored claims.
func peersOf(cfg *RunConfig, nodes []*corev1.Node, held map[netip.Addr]string) (peers []peer, refused []string) {
	type holding struct {
		node  string
		cidrs netip.Prefix
	}
	taken := []holding{{cfg.NodeName, cfg.PodCIDR}}
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, func(a, b *corev1.Node) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
	nodes = slices.DeleteFunc(nodes, func(n *corev1.Node) bool {
		return n.Name == cfg.NodeName || n.Labels[simulatedLabel] == "true"
	})
	claims := make(map[string][]netip.Addr, len(nodes))
	for _, n := range nodes {
		claims[n.Name] = peerAddresses(cfg, n)
	}
	maps.DeleteFunc(held, func(addr netip.Addr, name string) bool { return !slices.Contains(claims[name], addr) })
	for _, n := range nodes {
		p := peer{name: n.Name}
		for _, addr := range claims[n.Name] {
			if holder, ok := held[addr]; ok && holder != n.Name {
				refused = append(refused, fmt.Sprintf("address %s of node %s belongs to node %s", addr, n.Name, holder))
				continue
			}
			held[addr], p.address = n.Name, addr
			break
		}
		for _, r := range podRanges(n) {
			owner := slices.IndexFunc(taken, func(t holding) bool { return t.node != n.Name && t.cidrs.Overlaps(r) })
			switch {
			case r.Bits() < cfg.ClusterCIDR.Bits() || !cfg.ClusterCIDR.Contains(r.Addr()):
				refused = append(refused, fmt.Sprintf("%s of node %s is outside the cluster's range %s", r, n.Name, cfg.ClusterCIDR))
			case owner >= 0:
				refused = append(refused, fmt.Sprintf("%s of node %s overlaps %s of node %s", r, n.Name, taken[owner].cidrs, taken[owner].node))
			default:
				taken = append(taken, holding{n.Name, r})
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

// peerAddresses returns a Node's internal IPv4 addresses, without those that cannot be
// another machine's.
func peerAddresses(cfg *RunConfig, n *corev1.Node) (out []netip.Addr) {
	for _, a := range n.Status.Addresses {
		addr, err := netip.ParseAddr(a.Address)
		if a.Type != corev1.NodeInternalIP || err != nil || !addr.Is4() {
			continue
		}
		if addr == cfg.NodeIP || addr.IsLoopback() || addr.IsMulticast() || addr.IsUnspecified() || cfg.ClusterCIDR.Contains(addr) || cfg.ServiceCIDR.Contains(addr) {
			continue
		}
		out = append(out, addr)
	}
	return out
}

// podRanges returns the IPv4 pod ranges in a Node's spec.
func podRanges(n *corev1.Node) (out []netip.Prefix) {
	for _, s := range append([]string{n.Spec.PodCIDR}, n.Spec.PodCIDRs...) {
		if r, err := netip.ParsePrefix(s); err == nil && r.Addr().Is4() && !slices.Contains(out, r.Masked()) {
			out = append(out, r.Masked())
		}
	}
	return out
}

// sameNetwork reports whether two states of a Node are equal in everything that matters to
// the network. Almost all updates are: they are heartbeats.
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

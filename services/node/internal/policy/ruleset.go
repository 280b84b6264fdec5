package policy

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// Ruleset is what the table should be. It is made by Plan and must not be changed.
type Ruleset struct {
	// sets are the sets of groups, blocks and named ports by name. The elements are as nft writes
	// them; those of sets of blocks are ranges.
	sets map[string]*set
	// endpoints are the pods of this node by address.
	endpoints map[string]endpoint
	// chains are the chains of the policies that select pods of this node, and profiles those of
	// combinations of policies.
	chains   map[string]*side
	profiles map[string][]string
}

// set is a set of nftables.
type set struct {
	kind     string // its type
	interval bool
	elements map[string]struct{}
	spans    []span // of a set of blocks
}

// endpoint is a pod of this node.
type endpoint struct {
	link string
	// ingress and egress are the chains for the pod; empty if no policy isolates it.
	ingress, egress string
}

// quarantine is the chain of pods of which nothing is known: it drops everything.
const quarantine = "quarantine"

const (
	typeAddress = "ipv4_addr"
	typePort    = "ipv4_addr . inet_proto . inet_service"
)

// protocols are the protocols as nft writes them.
var protocols = map[corev1.Protocol]string{corev1.ProtocolTCP: "tcp", corev1.ProtocolUDP: "udp", corev1.ProtocolSCTP: "sctp"}

// Flow is a connection: its first packet, after the translation of Service addresses.
type Flow struct {
	From, To netip.Addr
	// Protocol is empty for protocols without ports.
	Protocol corev1.Protocol
	// Port is the port of To.
	Port uint16
}

// Allows reports whether the rules let a connection begin that this node forwards. It returns what
// the kernel does with the first packet.
func (r *Ruleset) Allows(f Flow) bool {
	if f.From == f.To {
		return true
	}
	from, to := f.From.String(), f.To.String()
	if e, ok := r.endpoints[from]; ok && e.egress != "" && !r.allows(e.egress, to, to, f) {
		return false
	}
	if e, ok := r.endpoints[to]; ok && e.ingress != "" && !r.allows(e.ingress, from, to, f) {
		return false
	}
	return true
}

func (r *Ruleset) allows(profile, peer, to string, f Flow) bool {
	for _, chain := range r.profiles[profile] {
		for i := range r.chains[chain].rules {
			if rule := &r.chains[chain].rules[i]; r.matchesPeer(rule, peer) && r.matchesPort(rule, to, f) {
				return true
			}
		}
	}
	return false
}

func (r *Ruleset) matchesPeer(rule *rule, peer string) bool {
	if rule.anyPeer {
		return true
	}
	for _, g := range rule.groups {
		if _, ok := r.sets[g.name].elements[peer]; ok {
			return true
		}
	}
	addr, err := netip.ParseAddr(peer)
	for _, s := range rule.blocks {
		if err == nil && s.first.Compare(addr) <= 0 && addr.Compare(s.last) <= 0 {
			return true
		}
	}
	return false
}

func (r *Ruleset) matchesPort(rule *rule, to string, f Flow) bool {
	if rule.anyPort {
		return true
	}
	for _, p := range rule.ranges {
		if p.protocol == f.Protocol && p.first <= f.Port && f.Port <= p.last {
			return true
		}
	}
	for _, n := range rule.named {
		if _, ok := r.sets[n.set()].elements[portKey(to, f.Protocol, f.Port)]; ok && n.protocol == f.Protocol {
			return true
		}
	}
	return false
}

package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Policy is a NetworkPolicy in the form that plans use.
type Policy struct {
	Namespace, Name string
	version         string
	selects         labels.Selector
	// ingress and egress are nil if the policy does not isolate pods in that direction.
	ingress, egress *side
}

// side is one direction of a policy. Without rules it allows nothing.
type side struct {
	chain string
	rules []rule
}

// rule allows what matches one of its peers and one of its ports.
type rule struct {
	// anyPeer is true if the rule names no peers. Otherwise groups and blocks are the peers.
	anyPeer bool
	groups  []*group
	blocks  []span
	// anyPort is true if the rule names no ports.
	anyPort bool
	ranges  []portRange
	named   []portName
}

// group is a set of pods. Equal groups of different policies have the same name, and so share a set.
type group struct {
	name string
	// namespace is the only namespace, if namespaces is nil.
	namespace  string
	namespaces labels.Selector
	pods       labels.Selector
}

// span is a range of addresses.
type span struct{ first, last netip.Addr }

type portRange struct {
	protocol    corev1.Protocol
	first, last uint16
}

type portName struct {
	protocol corev1.Protocol
	name     string
}

// Compile returns the form of a policy that plans use. A selector that cannot be parsed selects no
// peers; as the selector of the policy itself it selects all pods of the namespace, so that nothing
// fails open. (The apiserver accepts neither.)
func Compile(p *networkingv1.NetworkPolicy) *Policy {
	out := &Policy{Namespace: p.Namespace, Name: p.Name, version: p.ResourceVersion}
	var err error
	if out.selects, err = metav1.LabelSelectorAsSelector(&p.Spec.PodSelector); err != nil {
		out.selects = labels.Everything()
	}
	types := p.Spec.PolicyTypes
	ingress := len(types) == 0 || slices.Contains(types, networkingv1.PolicyTypeIngress)
	egress := slices.Contains(types, networkingv1.PolicyTypeEgress) || len(types) == 0 && len(p.Spec.Egress) > 0
	if ingress {
		out.ingress = &side{chain: chainName("in", p)}
		for _, r := range p.Spec.Ingress {
			out.ingress.rules = append(out.ingress.rules, compileRule(p.Namespace, r.From, r.Ports))
		}
	}
	if egress {
		out.egress = &side{chain: chainName("out", p)}
		for _, r := range p.Spec.Egress {
			out.egress.rules = append(out.egress.rules, compileRule(p.Namespace, r.To, r.Ports))
		}
	}
	return out
}

// chainName returns a readable name, which is cut if it is too long for the kernel.
func chainName(direction string, p *networkingv1.NetworkPolicy) string {
	const longest = 100
	name := direction + "/" + p.Namespace + "/" + p.Name
	if len(name) > longest {
		name = name[:longest-18] + "." + digest(name)
	}
	return name
}

// digest returns a short name for a text.
func digest(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:8])
}

func compileRule(namespace string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) rule {
	r := rule{anyPeer: len(peers) == 0, anyPort: len(ports) == 0}
	for i := range peers {
		if b := peers[i].IPBlock; b != nil {
			r.blocks = append(r.blocks, blockSpans(b)...)
			continue
		}
		g := compileGroup(namespace, &peers[i])
		if g != nil && !slices.ContainsFunc(r.groups, func(o *group) bool { return o.name == g.name }) {
			r.groups = append(r.groups, g)
		}
	}
	r.blocks = mergeSpans(r.blocks)
	for i := range ports {
		p := &ports[i]
		protocol := corev1.ProtocolTCP
		if p.Protocol != nil {
			protocol = protocolOf(*p.Protocol)
		}
		switch {
		case p.Port == nil:
			r.ranges = append(r.ranges, portRange{protocol, 0, 65535})
		case p.Port.Type == intstr.String:
			if n := (portName{protocol, p.Port.StrVal}); !slices.Contains(r.named, n) {
				r.named = append(r.named, n)
			}
		default:
			first := p.Port.IntVal
			last := first
			if p.EndPort != nil {
				last = *p.EndPort
			}
			if first >= 0 && first <= last && last <= 65535 {
				r.ranges = append(r.ranges, portRange{protocol, uint16(first), uint16(last)})
			}
		}
	}
	r.ranges = mergePorts(r.ranges)
	return r
}

func compileGroup(namespace string, peer *networkingv1.NetworkPolicyPeer) *group {
	g := &group{pods: labels.Everything()}
	var err error
	if peer.PodSelector != nil {
		if g.pods, err = metav1.LabelSelectorAsSelector(peer.PodSelector); err != nil {
			return nil
		}
	}
	where := "=" + namespace
	if peer.NamespaceSelector != nil {
		if g.namespaces, err = metav1.LabelSelectorAsSelector(peer.NamespaceSelector); err != nil {
			return nil
		}
		where = "~" + g.namespaces.String()
	} else {
		g.namespace = namespace
	}
	g.name = "pods-" + digest(where, g.pods.String())
	return g
}

// blockSpans returns a block without its exceptions. Blocks of IPv6 addresses are empty, because
// pods have none.
func blockSpans(b *networkingv1.IPBlock) []span {
	cidr, err := netip.ParsePrefix(b.CIDR)
	if err != nil || !cidr.Addr().Is4() {
		return nil
	}
	out := []span{spanOf(cidr)}
	for _, text := range b.Except {
		except, err := netip.ParsePrefix(text)
		if err != nil || !except.Addr().Is4() {
			continue
		}
		out = subtract(out, spanOf(except))
	}
	return out
}

func spanOf(p netip.Prefix) span {
	first := p.Masked().Addr()
	b := first.As4()
	host := uint32(1)<<(32-p.Bits()) - 1
	for i := range b {
		b[i] |= byte(host >> (8 * (3 - i)))
	}
	return span{first, netip.AddrFrom4(b)}
}

// subtract removes a range from ranges.
func subtract(spans []span, hole span) (out []span) {
	for _, s := range spans {
		if hole.last.Less(s.first) || s.last.Less(hole.first) {
			out = append(out, s)
			continue
		}
		if s.first.Less(hole.first) {
			out = append(out, span{s.first, hole.first.Prev()})
		}
		if hole.last.Less(s.last) {
			out = append(out, span{hole.last.Next(), s.last})
		}
	}
	return out
}

// mergeSpans sorts ranges and joins those that overlap or touch.
func mergeSpans(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return a.first.Compare(b.first) })
	var out []span
	for _, s := range spans {
		if n := len(out); n > 0 && (!out[n-1].last.Less(s.first) || out[n-1].last.Next() == s.first) {
			if out[n-1].last.Less(s.last) {
				out[n-1].last = s.last
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// mergePorts sorts ranges and joins those that overlap or touch: nftables takes no ranges that
// overlap.
func mergePorts(ports []portRange) []portRange {
	slices.SortFunc(ports, func(a, b portRange) int {
		return cmp.Or(cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.first, b.first))
	})
	var out []portRange
	for _, p := range ports {
		if n := len(out); n > 0 && out[n-1].protocol == p.protocol && int(p.first) <= int(out[n-1].last)+1 {
			out[n-1].last = max(out[n-1].last, p.last)
			continue
		}
		out = append(out, p)
	}
	return out
}

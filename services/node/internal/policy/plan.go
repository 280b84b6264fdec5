package policy

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Input is all that a plan depends on. Nothing in it is changed.
type Input struct {
	// Policies are all policies, in any order.
	Policies []*Policy
	// Namespaces are the labels of the namespaces by name.
	Namespaces map[string]map[string]string
	// Pods are the records of all pods; those of this node may be among them.
	Pods []*Pod
	// Locals are the pods of this node.
	Locals []Local
	// Ranges are the pod ranges of the nodes by name. A pod with an address outside those of its node
	// is no peer: nodes report the addresses of their pods, and must not speak for other nodes' pods.
	Ranges map[string][]netip.Prefix
}

// Plan computes the rules of a node. It is pure: equal inputs have equal results, whatever their
// order. Of the policies it looks only at those of namespaces with pods on this node, and of the
// pods only at the namespaces that their rules can reach.
func Plan(in Input) *Ruleset {
	p := &planner{
		out: &Ruleset{
			sets: map[string]*set{}, endpoints: map[string]endpoint{}, chains: map[string]*side{}, profiles: map[string][]string{},
		},
		in: in, byNamespace: peersByNamespace(&in), newest: map[netip.Addr]uint64{},
	}
	policies := map[string][]*Policy{}
	for _, policy := range in.Policies {
		policies[policy.Namespace] = append(policies[policy.Namespace], policy)
	}
	for _, list := range policies {
		slices.SortFunc(list, func(a, b *Policy) int { return strings.Compare(a.Name, b.Name) })
	}
	for i := range in.Locals {
		p.local(&in.Locals[i], policies[in.Locals[i].Pod.Namespace])
	}
	return p.out
}

type planner struct {
	in  Input
	out *Ruleset
	// byNamespace are the pods that can be peers.
	byNamespace map[string][]*Pod
	// newest holds which pod of this node has an address, if several claim it.
	newest map[netip.Addr]uint64
}

// peersByNamespace returns the pods with an address, one for each address: the pod of this node
// that has it, or else the youngest, because the others have ended.
func peersByNamespace(in *Input) map[string][]*Pod {
	holder := make(map[netip.Addr]*Pod, len(in.Pods))
	for _, p := range in.Pods {
		if !p.Addr.IsValid() || !slices.ContainsFunc(in.Ranges[p.Node], func(r netip.Prefix) bool { return r.Contains(p.Addr) }) {
			continue
		}
		if old := holder[p.Addr]; old == nil || younger(p, old) {
			holder[p.Addr] = p
		}
	}
	for i := range in.Locals {
		l := &in.Locals[i]
		if l.Unknown {
			delete(holder, l.Pod.Addr)
			continue
		}
		holder[l.Pod.Addr] = &l.Pod
	}
	out := map[string][]*Pod{}
	for _, p := range holder {
		out[p.Namespace] = append(out[p.Namespace], p)
	}
	return out
}

func younger(a, b *Pod) bool {
	if c := a.CreationTimestamp.Compare(b.CreationTimestamp.Time); c != 0 {
		return c > 0
	}
	return a.UID > b.UID
}

// local adds a pod of this node.
func (p *planner) local(l *Local, policies []*Policy) {
	if other, taken := p.newest[l.Pod.Addr]; taken && other > l.born {
		return // the older sandbox has ended
	}
	p.newest[l.Pod.Addr] = l.born
	e := endpoint{link: l.Link}
	if l.Unknown {
		e.ingress, e.egress = quarantine, quarantine
		p.out.profiles[quarantine] = nil
	} else {
		var in, out []string
		for _, policy := range policies {
			if !policy.selects.Matches(labels.Set(l.Pod.Labels)) {
				continue
			}
			in = p.use(in, policy.ingress)
			out = p.use(out, policy.egress)
		}
		e.ingress, e.egress = p.profile("to-", in), p.profile("from-", out)
	}
	p.out.endpoints[l.Pod.text] = e
}

// use adds the chain of one side of a policy, with the sets that it needs.
func (p *planner) use(chains []string, s *side) []string {
	if s == nil {
		return chains
	}
	if p.out.chains[s.chain] == nil {
		p.out.chains[s.chain] = s
		for i := range s.rules {
			p.sets(&s.rules[i])
		}
	}
	return append(chains, s.chain)
}

func (p *planner) profile(prefix string, chains []string) string {
	if len(chains) == 0 {
		return ""
	}
	name := prefix + digest(chains...)
	p.out.profiles[name] = chains
	return name
}

// sets adds the sets of a rule.
func (p *planner) sets(r *rule) {
	for _, g := range r.groups {
		if p.out.sets[g.name] == nil {
			p.out.sets[g.name] = &set{kind: typeAddress, elements: p.members(g)}
		}
	}
	if len(r.blocks) > 0 {
		name := blockSet(r.blocks)
		if p.out.sets[name] == nil {
			s := &set{kind: typeAddress, interval: true, elements: map[string]struct{}{}, spans: r.blocks}
			for _, b := range r.blocks {
				s.elements[b.text()] = struct{}{}
			}
			p.out.sets[name] = s
		}
	}
	for _, n := range r.named {
		if p.out.sets[n.set()] == nil {
			p.out.sets[n.set()] = &set{kind: typePort, elements: p.ports(n)}
		}
	}
}

func (p *planner) members(g *group) map[string]struct{} {
	out := map[string]struct{}{}
	add := func(namespace string) {
		for _, pod := range p.byNamespace[namespace] {
			if g.pods.Empty() || g.pods.Matches(labels.Set(pod.Labels)) {
				out[pod.text] = struct{}{}
			}
		}
	}
	if g.namespaces == nil {
		add(g.namespace)
		return out
	}
	for namespace, l := range p.in.Namespaces {
		if g.namespaces.Matches(labels.Set(l)) {
			add(namespace)
		}
	}
	return out
}

// ports returns where pods have a named port.
func (p *planner) ports(n portName) map[string]struct{} {
	out := map[string]struct{}{}
	for _, pods := range p.byNamespace {
		for _, pod := range pods {
			for _, port := range pod.Ports {
				if port.Name == n.name && port.Protocol == n.protocol {
					out[portKey(pod.text, port.Protocol, port.Number)] = struct{}{}
				}
			}
		}
	}
	return out
}

func portKey(addr string, protocol corev1.Protocol, port uint16) string {
	return addr + " . " + protocols[protocol] + " . " + strconv.Itoa(int(port))
}

// set returns the name of the set of a named port. Names of ports have letters, digits and dashes.
func (n portName) set() string { return "port-" + protocols[n.protocol] + "-" + n.name }

// blockSet returns the name of a set of blocks. Its content never changes.
func blockSet(blocks []span) string {
	texts := make([]string, len(blocks))
	for i, b := range blocks {
		texts[i] = b.text()
	}
	return "block-" + digest(texts...)
}

func (s span) text() string {
	if s.first == s.last {
		return s.first.String()
	}
	return s.first.String() + "-" + s.last.String()
}

package policy

import (
	"maps"
	"slices"
	"strings"

	"sigs.k8s.io/knftables"
)

// table is a rule set as objects of nftables.
type table struct {
	sets map[string]*set
	// jumps are the elements of the maps of verdicts, by map and address.
	jumps  map[string]map[string]string
	chains map[string][]string
}

// Names of the objects that every table has.
const (
	setLinks    = "links"    // interfaces of pods
	setLocals   = "locals"   // addresses of pods of this node
	setSelf     = "self"     // the same, twice
	setIsolated = "isolated" // addresses of pods that a policy selects
	mapIngress  = "ingress"
	mapEgress   = "egress"
)

// render returns the objects of a rule set, without the base chains.
func render(r *Ruleset) *table {
	t := &table{sets: maps.Clone(r.sets), jumps: map[string]map[string]string{mapIngress: {}, mapEgress: {}}, chains: map[string][]string{}}
	links, locals, self, isolated := map[string]struct{}{}, map[string]struct{}{}, map[string]struct{}{}, map[string]struct{}{}
	for addr, e := range r.endpoints {
		if e.link != "" {
			links[`"`+e.link+`"`] = struct{}{}
		}
		locals[addr], self[addr+" . "+addr] = struct{}{}, struct{}{}
		if e.ingress != "" {
			t.jumps[mapIngress][addr] = "goto " + e.ingress
			isolated[addr] = struct{}{}
		}
		if e.egress != "" {
			t.jumps[mapEgress][addr] = "goto " + e.egress
			isolated[addr] = struct{}{}
		}
	}
	t.sets[setLinks] = &set{kind: "ifname", elements: links}
	t.sets[setLocals] = &set{kind: typeAddress, elements: locals}
	t.sets[setSelf] = &set{kind: typeAddress + " . " + typeAddress, elements: self}
	t.sets[setIsolated] = &set{kind: typeAddress, elements: isolated}
	for name, policies := range r.profiles {
		rules := make([]string, 0, len(policies)+1)
		for _, chain := range policies {
			rules = append(rules, "jump "+chain)
		}
		t.chains[name] = append(rules, "drop")
	}
	for name, s := range r.chains {
		peer := "saddr"
		if strings.HasPrefix(name, "out/") {
			peer = "daddr"
		}
		t.chains[name] = s.render(peer)
	}
	return t
}

// render returns the rules of one side of a policy: one for each set of peers and kind of port.
func (s *side) render(peer string) []string {
	var out []string
	for i := range s.rules {
		r := &s.rules[i]
		peers := []string{}
		if r.anyPeer {
			peers = append(peers, "")
		}
		for _, g := range r.groups {
			peers = append(peers, "ip "+peer+" @"+g.name+" ")
		}
		if len(r.blocks) > 0 && !r.anyPeer {
			peers = append(peers, "ip "+peer+" @"+blockSet(r.blocks)+" ")
		}
		var ports []string
		if r.anyPort {
			ports = append(ports, "")
		}
		if len(r.ranges) > 0 {
			ports = append(ports, "meta l4proto . th dport { "+strings.Join(rangeTexts(r.ranges), ", ")+" } ")
		}
		for _, n := range r.named {
			ports = append(ports, "ip daddr . meta l4proto . th dport @"+n.set()+" ")
		}
		for _, a := range peers {
			for _, b := range ports {
				out = append(out, a+b+"accept")
			}
		}
	}
	return out
}

func rangeTexts(ranges []portRange) []string {
	out := make([]string, len(ranges))
	for i, r := range ranges {
		out[i] = knftables.Concat(protocols[r.protocol], ".", r.first)
		if r.first != r.last {
			out[i] = knftables.Concat(protocols[r.protocol], ".", knftables.Concat(r.first)+"-"+knftables.Concat(r.last))
		}
	}
	return out
}

// create writes the whole table.
func (t *table) create(tx *knftables.Transaction) {
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("network policies of the pods of this node; written by keelson")})
	for _, name := range []string{mapIngress, mapEgress} {
		tx.Add(&knftables.Map{Name: name, Type: typeAddress + " : verdict"})
	}
	new(table).update(tx, t)
	base := func(name string, hook knftables.BaseChainHook, priority knftables.BaseChainPriority, rules ...string) {
		filter := knftables.FilterType
		tx.Add(&knftables.Chain{Name: name, Type: &filter, Hook: &hook, Priority: &priority})
		for _, r := range rules {
			tx.Add(&knftables.Rule{Chain: name, Rule: r})
		}
	}
	base("source", knftables.PreroutingHook, knftables.RawPriority,
		"iifname @"+setLinks+" fib saddr . iif oif missing drop",
		"iifname != @"+setLinks+" ip saddr @"+setLocals+" drop")
	// Each direction has a base chain of its own: what one accepts, the other still decides on. A
	// connection that was cut must not be taken up again from the middle, by whichever end sends
	// next.
	const begun = "ct state established,related accept"
	base("from-pods", knftables.ForwardHook, "-10", begun, "ip saddr . ip daddr @"+setSelf+" accept",
		"ct state new tcp flags & (fin | syn | rst | ack) != syn ip saddr @"+setIsolated+" reject with tcp reset",
		"ct state new tcp flags & (fin | syn | rst | ack) != syn ip daddr @"+setIsolated+" reject with tcp reset",
		"ip saddr vmap @"+mapEgress)
	base("to-pods", knftables.ForwardHook, "-9", begun, "ip saddr . ip daddr @"+setSelf+" accept", "ip daddr vmap @"+mapIngress)
}

// update writes the difference to next: first objects that others refer to, last those that are no
// longer referred to. It reports whether something that was allowed may now be forbidden.
func (t *table) update(tx *knftables.Transaction, next *table) (tighter bool) {
	for _, name := range sorted(next.sets) {
		s := next.sets[name]
		if old := t.sets[name]; old == nil {
			def := &knftables.Set{Name: name, Type: s.kind}
			if s.interval {
				def.Flags = []knftables.SetFlag{knftables.IntervalFlag}
			}
			tx.Add(def)
			addElements(tx, name, s.elements, nil)
		}
	}
	for _, name := range sorted(next.chains) {
		if _, had := t.chains[name]; !had {
			tx.Add(&knftables.Chain{Name: name})
		}
	}
	for _, name := range sorted(next.chains) {
		old, had := t.chains[name]
		if had && slices.Equal(old, next.chains[name]) {
			continue
		}
		if had {
			tx.Flush(&knftables.Chain{Name: name})
			tighter = true
		}
		for _, r := range next.chains[name] {
			tx.Add(&knftables.Rule{Chain: name, Rule: r})
		}
	}
	for _, name := range sorted(next.sets) {
		old := t.sets[name]
		if old == nil {
			continue
		}
		for _, e := range missing(old.elements, next.sets[name].elements) {
			tx.Delete(&knftables.Element{Set: name, Key: []string{e}})
			tighter = tighter || name != setIsolated && name != setLocals && name != setSelf && name != setLinks
		}
		addElements(tx, name, next.sets[name].elements, old.elements)
	}
	for _, name := range sorted(next.jumps) {
		old := t.jumps[name]
		for _, addr := range sorted(old) {
			if verdict, has := next.jumps[name][addr]; !has || verdict != old[addr] {
				tx.Delete(&knftables.Element{Map: name, Key: []string{addr}, Value: []string{old[addr]}})
			}
		}
		for _, addr := range sorted(next.jumps[name]) {
			if verdict := next.jumps[name][addr]; verdict != old[addr] {
				tx.Add(&knftables.Element{Map: name, Key: []string{addr}, Value: []string{verdict}})
				tighter = true
			}
		}
	}
	for _, name := range sorted(t.chains) {
		if _, has := next.chains[name]; !has {
			tx.Flush(&knftables.Chain{Name: name})
		}
	}
	for _, name := range sorted(t.chains) {
		if _, has := next.chains[name]; !has {
			tx.Delete(&knftables.Chain{Name: name})
		}
	}
	for _, name := range sorted(t.sets) {
		if _, has := next.sets[name]; !has {
			tx.Delete(&knftables.Set{Name: name})
		}
	}
	return tighter
}

func addElements(tx *knftables.Transaction, name string, elements, had map[string]struct{}) {
	for _, e := range missing(elements, had) {
		tx.Add(&knftables.Element{Set: name, Key: []string{e}})
	}
}

// missing returns the elements of a that b lacks, in order.
func missing(a, b map[string]struct{}) (out []string) {
	for e := range a {
		if _, ok := b[e]; !ok {
			out = append(out, e)
		}
	}
	slices.Sort(out)
	return out
}

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

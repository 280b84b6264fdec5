package state

import "strconv"

// Domains holds the values of one topology key, numbered.
type Domains struct {
	Key    string
	values map[string]int32
	names  []string
	of     []int32 // by node index; -1 where the node lacks the key
}

// Of returns the domain of a node, or -1 if it lacks the key.
func (d *Domains) Of(n *Node) int32 { return d.of[n.Index] }

// Len returns the number of domains seen since the last renumbering.
func (d *Domains) Len() int { return len(d.names) }

func (d *Domains) place(n *Node) {
	for len(d.of) <= n.Index {
		d.of = append(d.of, -1)
	}
	value, ok := n.Object.Labels[d.Key]
	if !ok {
		d.of[n.Index] = -1
		return
	}
	id, ok := d.values[value]
	if !ok {
		id = int32(len(d.names))
		d.values[value] = id
		d.names = append(d.names, value)
	}
	d.of[n.Index] = id
}

// Domains returns the domains of a topology key. The numbers stay the same within an
// Epoch.
func (c *Cluster) Domains(key string) *Domains {
	d := c.domains[key]
	if d == nil {
		d = &Domains{Key: key, values: map[string]int32{}}
		c.domains[key] = d
		for _, n := range c.Nodes {
			if n != nil {
				d.place(n)
			}
		}
		for len(d.of) < len(c.Nodes) {
			d.of = append(d.of, -1)
		}
	}
	return d
}

// GroupKind is what the terms of a Group require of other pods.
type GroupKind uint8

// The kinds of groups.
const (
	// Repels is for required anti-affinity terms: no pod that they match may be in a
	// domain where one of their owners is.
	Repels GroupKind = iota + 1
	// Attracts is for terms that count only in scores: preferred ones, positive and
	// negative, and required affinity.
	Attracts
)

// Group holds all equivalent terms of pods on nodes, and where their owners are.
type Group struct {
	Kind    GroupKind
	Term    *Term
	Weight  int64 // of Attracts
	Domains *Domains
	// Counts holds the number of owners by domain.
	Counts []int32
	Total  int
}

// In returns the number of owners in a node's domain.
func (g *Group) In(n *Node) int32 {
	d := g.Domains.Of(n)
	if d < 0 || int(d) >= len(g.Counts) {
		return 0
	}
	return g.Counts[d]
}

// requiredWeight is the weight of a required affinity term of a pod on a node in the
// scores of the pods that it matches (Kubernetes' hardPodAffinityWeight).
const requiredWeight = 1

func (c *Cluster) countGroups(n *Node, p *Pod, sign int32) {
	if len(p.RequiredAffinity)+len(p.RequiredAntiAffinity)+len(p.PreferredAffinity)+len(p.PreferredAntiAffinity) == 0 {
		return
	}
	if p.groups == nil || p.epoch != c.Epoch {
		p.groups, p.epoch = nil, c.Epoch
		for i := range p.RequiredAntiAffinity {
			p.groups = append(p.groups, c.group(Repels, &p.RequiredAntiAffinity[i], 0))
		}
		for i := range p.RequiredAffinity {
			p.groups = append(p.groups, c.group(Attracts, &p.RequiredAffinity[i], requiredWeight))
		}
		for i := range p.PreferredAffinity {
			p.groups = append(p.groups, c.group(Attracts, &p.PreferredAffinity[i], int64(p.PreferredAffinity[i].Weight)))
		}
		for i := range p.PreferredAntiAffinity {
			p.groups = append(p.groups, c.group(Attracts, &p.PreferredAntiAffinity[i], -int64(p.PreferredAntiAffinity[i].Weight)))
		}
	}
	for _, g := range p.groups {
		d := g.Domains.Of(n)
		if d < 0 {
			continue
		}
		for int(d) >= len(g.Counts) {
			g.Counts = append(g.Counts, 0)
		}
		g.Counts[d] += sign
		switch g.Total += int(sign); {
		case g.Total == 0:
			c.live--
		case g.Total == int(sign):
			c.live++
		}
	}
}

func (c *Cluster) group(kind GroupKind, t *Term, weight int64) *Group {
	id := strconv.Itoa(int(kind)) + "\x00" + strconv.FormatInt(weight, 10) + "\x00" + t.ID
	g := c.groups[id]
	if g == nil {
		g = &Group{Kind: kind, Term: t, Weight: weight, Domains: c.Domains(t.TopologyKey)}
		c.groups[id] = g
		c.Groups = append(c.Groups, g)
	}
	return g
}

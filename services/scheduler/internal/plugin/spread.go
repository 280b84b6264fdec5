package plugin

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"keelson.dev/services/scheduler/internal/state"
)

// constraint is one topology spread constraint, with its counts.
type constraint struct {
	maxSkew    int32
	minDomains int
	selector   labels.Selector
	self       int32 // 1 if the pod itself counts
	domains    *state.Domains
	// affinity and taints decide which nodes count.
	affinity, taints bool
	// eligible holds the eligible nodes by index; the other two hold the counts of
	// matching pods and the numbers of eligible nodes by domain.
	eligible []bool
	counts   []int32
	nodes    []int32
	least    int32 // of counts, over domains with nodes
}

// spreading is what hard and soft constraints share.
type spreading struct {
	env         *Env
	pod         *state.Pod
	required    nodeaffinity.RequiredNodeAffinity
	constraints []constraint
	// all is true if only nodes with all topology keys count.
	all   bool
	dirty bool
}

// spread refuses nodes where the pod would make the spread over domains too
// uneven.
type spread struct{ spreading }

func newSpread(env *Env, p *state.Pod) Shared {
	s := &spread{}
	if !s.build(env, p, constraintsOf(p, corev1.DoNotSchedule), true) {
		return nil
	}
	return s
}

func constraintsOf(p *state.Pod, action corev1.UnsatisfiableConstraintAction) []corev1.TopologySpreadConstraint {
	var out []corev1.TopologySpreadConstraint
	for _, c := range p.Object.Spec.TopologySpreadConstraints {
		if c.WhenUnsatisfiable == action {
			out = append(out, c)
		}
	}
	return out
}

// build reads the constraints and counts. It returns false if there are none.
func (s *spreading) build(env *Env, p *state.Pod, from []corev1.TopologySpreadConstraint, all bool) bool {
	if len(from) == 0 {
		return false
	}
	s.env, s.pod, s.all = env, p, all
	s.required = nodeaffinity.GetRequiredNodeAffinity(p.Object)
	for i := range from {
		c := &from[i]
		sel, err := metav1.LabelSelectorAsSelector(c.LabelSelector)
		if err != nil {
			sel = labels.Nothing()
		}
		sel = withLabelKeys(sel, c.MatchLabelKeys, p.Labels)
		n := constraint{
			maxSkew: c.MaxSkew, minDomains: 1, selector: sel, domains: env.Domains(c.TopologyKey),
			affinity: c.NodeAffinityPolicy == nil || *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor,
			taints:   c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor,
		}
		if c.MinDomains != nil {
			n.minDomains = int(*c.MinDomains)
		}
		if sel.Matches(p.Labels) {
			n.self = 1
		}
		s.constraints = append(s.constraints, n)
	}
	s.count()
	return true
}

// withLabelKeys narrows a selector to the pod's own values of the given labels.
func withLabelKeys(sel labels.Selector, keys []string, set labels.Set) labels.Selector {
	own := labels.Set{}
	for _, key := range keys {
		if v, ok := set[key]; ok {
			own[key] = v
		}
	}
	reqs, selectable := sel.Requirements()
	if len(own) == 0 || !selectable {
		return sel
	}
	return labels.SelectorFromSet(own).Add(reqs...)
}

func (s *spreading) count() {
	for _, n := range s.env.Nodes {
		if n == nil {
			continue
		}
		whole := true
		for i := range s.constraints {
			whole = whole && s.constraints[i].domains.Of(n) >= 0
		}
		for i := range s.constraints {
			c := &s.constraints[i]
			for len(c.eligible) <= n.Index {
				c.eligible = append(c.eligible, false)
			}
			d := c.domains.Of(n)
			if d < 0 || (s.all && !whole) {
				continue
			}
			if c.affinity {
				if ok, _ := s.required.Match(n.Object); !ok {
					continue
				}
			}
			if c.taints && !tolerated(s.pod.Object.Spec.Tolerations, n) {
				continue
			}
			c.eligible[n.Index] = true
			c.at(d)
			c.nodes[d]++
		}
	}
	for _, p := range s.env.PodsIn(s.pod.Namespace) {
		if n := s.env.Node(p.Node); n != nil {
			s.add(n, p, 1)
		}
	}
	s.dirty = true
}

// at grows the counts to hold a domain.
func (c *constraint) at(d int32) {
	for int(d) >= len(c.counts) {
		c.counts = append(c.counts, 0)
		c.nodes = append(c.nodes, 0)
	}
}

func (s *spreading) add(n *state.Node, p *state.Pod, sign int32) {
	if p.Terminating || p.Namespace != s.pod.Namespace {
		return
	}
	for i := range s.constraints {
		c := &s.constraints[i]
		if n.Index < len(c.eligible) && c.eligible[n.Index] && !c.selector.Empty() && c.selector.Matches(p.Labels) {
			c.counts[c.domains.Of(n)] += sign
			s.dirty = true
		}
	}
}

// Stale implements Follower.
func (s *spreading) Stale() bool { return false }

// Apply implements Follower.
func (s *spreading) Apply(ch *state.Change) bool {
	if ch.What&state.NodeTaints != 0 {
		for i := range s.constraints {
			if s.constraints[i].taints {
				return false
			}
		}
	}
	if ch.Pod != nil {
		sign := int32(1)
		if ch.Gone {
			sign = -1
		}
		s.add(ch.Node, ch.Pod, sign)
	}
	return true
}

// Refresh implements Follower.
func (s *spread) Refresh() {
	if !s.dirty {
		return
	}
	s.dirty = false
	for i := range s.constraints {
		c := &s.constraints[i]
		c.least = math.MaxInt32
		domains := 0
		for d, nodes := range c.nodes {
			if nodes > 0 {
				domains++
				c.least = min(c.least, c.counts[d])
			}
		}
		if domains < c.minDomains {
			c.least = 0
		}
	}
}

func (*spread) Name() string { return PodTopologySpread }

func (s *spread) Check(n *state.Node) bool {
	for i := range s.constraints {
		c := &s.constraints[i]
		d := c.domains.Of(n)
		if d < 0 || c.skew(d) > int64(c.maxSkew) {
			return false
		}
	}
	return true
}

// Curable implements Curable: a node does not get a label because pods leave.
func (s *spread) Curable(n *state.Node) bool {
	for i := range s.constraints {
		if s.constraints[i].domains.Of(n) < 0 {
			return false
		}
	}
	return true
}

func (c *constraint) skew(d int32) int64 {
	var count int32
	if int(d) < len(c.counts) {
		count = c.counts[d]
	}
	return int64(count) + int64(c.self) - int64(c.least)
}

func (s *spread) Explain(n *state.Node) []string {
	const reason = "node(s) didn't match pod topology spread constraints"
	for i := range s.constraints {
		c := &s.constraints[i]
		switch d := c.domains.Of(n); {
		case d < 0:
			return []string{reason + " (missing required label)"}
		case c.skew(d) > int64(c.maxSkew):
			return []string{reason}
		}
	}
	return nil
}

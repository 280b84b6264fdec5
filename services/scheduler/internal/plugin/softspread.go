package plugin

import (
	"math"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/scheduler/internal/state"
)

// Spread scores nodes by how even they keep the spread of pods over domains: according
// to the pod's own soft constraints or, if it has no constraints at all, to the default
// ones for pods that belong to a Service or a controller.
type Spread struct {
	spreading
	// hosts holds the counts by node of constraints over host names; nil for others.
	hosts [][]int32
	// The rest is for one decision.
	weights []float64
	seen    [][]bool
}

// defaultConstraints holds the default constraints of Kubernetes' scheduler.
var defaultConstraints = []corev1.TopologySpreadConstraint{
	{TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway, MaxSkew: 3},
	{TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.ScheduleAnyway, MaxSkew: 5},
}

// NewSpread returns the score, or nil if it makes no difference.
func NewSpread(env *Env, p *state.Pod) *Spread {
	s := &Spread{}
	if len(p.Object.Spec.TopologySpreadConstraints) > 0 {
		if !s.build(env, p, constraintsOf(p, corev1.ScheduleAnyway), true) {
			return nil
		}
	} else {
		sel := env.DefaultSelector(p)
		if sel.Empty() {
			return nil
		}
		s.build(env, p, defaultConstraints, false)
		for i := range s.constraints {
			s.constraints[i].selector = sel
		}
		for i := range s.constraints {
			clear(s.constraints[i].counts)
		}
		for _, q := range env.PodsIn(p.Namespace) {
			if n := env.Node(q.Node); n != nil {
				s.add(n, q, 1)
			}
		}
	}
	s.hosts = make([][]int32, len(s.constraints))
	s.weights = make([]float64, len(s.constraints))
	s.seen = make([][]bool, len(s.constraints))
	for i := range s.constraints {
		c := &s.constraints[i]
		if c.domains.Key != corev1.LabelHostname {
			continue
		}
		s.hosts[i] = make([]int32, len(env.Nodes))
		for _, q := range env.PodsIn(p.Namespace) {
			if n := env.Node(q.Node); n != nil && !q.Terminating && c.selector.Matches(q.Labels) {
				s.hosts[i][n.Index]++
			}
		}
	}
	return s
}

// Apply implements Follower.
func (s *Spread) Apply(ch *state.Change) bool {
	if !s.spreading.Apply(ch) {
		return false
	}
	if p := ch.Pod; p != nil && !p.Terminating && p.Namespace == s.pod.Namespace {
		for i, hosts := range s.hosts {
			if hosts != nil && !s.constraints[i].selector.Empty() && s.constraints[i].selector.Matches(p.Labels) {
				if ch.Gone {
					hosts[ch.Node.Index]--
				} else {
					hosts[ch.Node.Index]++
				}
			}
		}
	}
	return true
}

// Refresh implements Follower.
func (s *Spread) Refresh() {}

// ignored nodes lack a topology key and are not scored.
func (s *Spread) ignored(n *state.Node) bool {
	if !s.all {
		return false
	}
	for i := range s.constraints {
		if s.constraints[i].domains.Of(n) < 0 {
			return true
		}
	}
	return false
}

// Scores fills in the normalized scores of the feasible nodes.
func (s *Spread) Scores(feasible []*state.Node, out []int64) {
	s.weigh(feasible)
	least, most := int64(math.MaxInt64), int64(0)
	for i, n := range feasible {
		if s.ignored(n) {
			out[i] = -1
			continue
		}
		var sum float64
		for j := range s.constraints {
			c := &s.constraints[j]
			d := c.domains.Of(n)
			if d < 0 {
				continue
			}
			var count int32
			switch {
			case s.hosts[j] != nil:
				count = s.hosts[j][n.Index]
			case int(d) < len(c.counts):
				count = c.counts[d]
			}
			sum += float64(count)*s.weights[j] + float64(c.maxSkew-1)
		}
		out[i] = int64(math.Round(sum))
		least, most = min(least, out[i]), max(most, out[i])
	}
	for i, v := range out {
		switch {
		case v < 0:
			out[i] = 0
		case most == 0:
			out[i] = MaxScore
		default:
			out[i] = MaxScore * (most + least - v) / most
		}
	}
}

// weigh gives constraints with many domains among the feasible nodes more weight,
// because their counts are smaller.
func (s *Spread) weigh(feasible []*state.Node) {
	scored := 0
	for _, n := range feasible {
		if !s.ignored(n) {
			scored++
		}
	}
	for j := range s.constraints {
		size := scored
		if s.hosts[j] == nil {
			d := s.constraints[j].domains
			for len(s.seen[j]) < d.Len()+1 {
				s.seen[j] = append(s.seen[j], false)
			}
			clear(s.seen[j])
			size = 0
			for _, n := range feasible {
				if s.ignored(n) {
					continue
				}
				// Nodes without the key count as one more domain.
				if at := d.Of(n) + 1; !s.seen[j][at] {
					s.seen[j][at] = true
					size++
				}
			}
		}
		s.weights[j] = math.Log(float64(size + 2))
	}
}

package plugin

import (
	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/services/scheduler/internal/state"
)

// counted is one of the pod's own terms, with the number of pods that it matches by
// domain.
type counted struct {
	term    *state.Term
	weight  int64
	domains *state.Domains
	counts  []int32
	total   int
}

func (c *counted) add(n *state.Node, sign int32) {
	d := c.domains.Of(n)
	if d < 0 {
		return
	}
	for int(d) >= len(c.counts) {
		c.counts = append(c.counts, 0)
	}
	c.counts[d] += sign
	c.total += int(sign)
}

func (c *counted) in(n *state.Node) int32 {
	d := c.domains.Of(n)
	if d < 0 || int(d) >= len(c.counts) {
		return 0
	}
	return c.counts[d]
}

// neighbours is what the filter and the score of inter-pod affinity share: the pod's
// own terms with counts, and the terms of other pods that match it.
type neighbours struct {
	env        *Env
	pod        *state.Pod
	kind       state.GroupKind
	groups     []*state.Group // of others, matching the pod
	read       int            // of env.Groups
	epoch      uint64
	namespaces uint64
	// selects is true if the labels of namespaces matter.
	selects bool
	own     []counted
	// joint is the number of affinity terms at the start of own for which only pods
	// that match all of them count.
	joint int
}

func (b *neighbours) begin(env *Env, p *state.Pod, kind state.GroupKind) {
	b.env, b.pod, b.kind, b.epoch, b.namespaces = env, p, kind, env.Epoch, env.NamespacesSeen
}

func (b *neighbours) follow(terms []state.Term, sign int64) {
	for i := range terms {
		t := &terms[i]
		b.selects = b.selects || t.NamespaceSelector != nil
		b.own = append(b.own, counted{term: t, weight: sign * int64(t.Weight), domains: b.env.Domains(t.TopologyKey)})
	}
}

func (b *neighbours) count() {
	if len(b.own) == 0 {
		return
	}
	for _, p := range b.env.Pods() {
		if n := b.env.Node(p.Node); n != nil {
			b.add(n, p, 1)
		}
	}
}

func (b *neighbours) add(n *state.Node, p *state.Pod, sign int32) {
	if len(b.own) == 0 {
		return
	}
	var set labels.Set
	if b.selects {
		set = b.env.NamespaceLabels(p.Namespace)
	}
	joint := b.joint > 0
	for i := range b.own[:b.joint] {
		joint = joint && b.own[i].term.Matches(p.Namespace, set, p.Labels)
	}
	for i := range b.own {
		c := &b.own[i]
		if i < b.joint && joint || i >= b.joint && c.term.Matches(p.Namespace, set, p.Labels) {
			c.add(n, sign)
		}
	}
}

// Apply implements Follower.
func (b *neighbours) Apply(ch *state.Change) bool {
	if ch.Pod != nil {
		sign := int32(1)
		if ch.Gone {
			sign = -1
		}
		b.add(ch.Node, ch.Pod, sign)
	}
	return true
}

// Stale implements Follower: the labels of namespaces changed, and may matter.
func (b *neighbours) Stale() bool {
	return b.selects && b.namespaces != b.env.NamespacesSeen
}

// Refresh implements Follower: it looks at the terms that are new.
func (b *neighbours) Refresh() {
	if b.epoch != b.env.Epoch || b.namespaces != b.env.NamespacesSeen {
		b.epoch, b.namespaces, b.groups, b.read = b.env.Epoch, b.env.NamespacesSeen, nil, 0
	}
	for ; b.read < len(b.env.Groups); b.read++ {
		g := b.env.Groups[b.read]
		if g.Kind == b.kind && g.Term.Matches(b.pod.Namespace, b.env.NamespaceLabels(b.pod.Namespace), b.pod.Labels) {
			b.groups = append(b.groups, g)
		}
	}
}

// interPod refuses nodes that required affinity or anti-affinity between pods forbids:
// the pod's own, and the anti-affinity of existing pods.
type interPod struct {
	neighbours
	// selfish is true if the pod matches its own affinity terms, so that it may be the
	// first of its kind.
	selfish bool
}

func newInterPod(env *Env, p *state.Pod) Shared {
	f := &interPod{selfish: len(p.RequiredAffinity) > 0}
	f.begin(env, p, state.Repels)
	f.follow(p.RequiredAffinity, 1)
	f.joint = len(f.own)
	f.follow(p.RequiredAntiAffinity, 1)
	for i := range p.RequiredAffinity {
		f.selfish = f.selfish && p.RequiredAffinity[i].Matches(p.Namespace, env.NamespaceLabels(p.Namespace), p.Labels)
	}
	f.count()
	return f
}

func (*interPod) Name() string { return InterPodAffinity }

func (f *interPod) Check(n *state.Node) bool { return f.why(n) == "" }

func (f *interPod) Explain(n *state.Node) []string { return []string{f.why(n)} }

// Curable implements Curable: a pod that affinity requires does not come because others
// leave.
func (f *interPod) Curable(n *state.Node) bool { return f.affine(n) }

func (f *interPod) why(n *state.Node) string {
	if !f.affine(n) {
		return "node(s) didn't match pod affinity rules"
	}
	for i := range f.own[f.joint:] {
		if f.own[f.joint+i].in(n) > 0 {
			return "node(s) didn't match pod anti-affinity rules"
		}
	}
	for _, g := range f.groups {
		if g.Total > 0 && g.In(n) > 0 {
			return "node(s) didn't satisfy existing pods anti-affinity rules"
		}
	}
	return ""
}

// Idle reports whether the filter refuses no node, whichever pods come and go, as long as
// Refresh finds no new terms.
func (f *interPod) Idle() bool {
	if len(f.own) > 0 {
		return false
	}
	for _, g := range f.groups {
		if g.Total > 0 {
			return false
		}
	}
	return true
}

// affine reports whether the pods that the affinity terms require exist.
func (f *interPod) affine(n *state.Node) bool {
	there, nowhere := true, true
	for i := range f.own[:f.joint] {
		c := &f.own[i]
		if c.domains.Of(n) < 0 {
			return false
		}
		there = there && c.in(n) > 0
		nowhere = nowhere && c.total == 0
	}
	return there || (nowhere && f.selfish)
}

// Affinity scores nodes by preferred affinity between pods: the pod's own and that of
// existing pods.
type Affinity struct{ neighbours }

// NewAffinity returns the score.
func NewAffinity(env *Env, p *state.Pod) *Affinity {
	s := &Affinity{}
	s.begin(env, p, state.Attracts)
	s.follow(p.PreferredAffinity, 1)
	s.follow(p.PreferredAntiAffinity, -1)
	s.count()
	return s
}

// Matters reports whether the scores differ at all.
func (s *Affinity) Matters() bool {
	for i := range s.own {
		if s.own[i].total > 0 {
			return true
		}
	}
	for _, g := range s.groups {
		if g.Total > 0 {
			return true
		}
	}
	return false
}

// Scores fills in the normalized scores of the feasible nodes.
func (s *Affinity) Scores(feasible []*state.Node, out []int64) {
	var least, most int64
	for i, n := range feasible {
		var sum int64
		for j := range s.own {
			sum += s.own[j].weight * int64(s.own[j].in(n))
		}
		for _, g := range s.groups {
			if g.Total > 0 {
				sum += g.Weight * int64(g.In(n))
			}
		}
		out[i] = sum
		if i == 0 {
			least, most = sum, sum
		}
		least, most = min(least, sum), max(most, sum)
	}
	for i, v := range out {
		out[i] = 0
		if most > least {
			out[i] = int64(MaxScore * (float64(v-least) / float64(most-least)))
		}
	}
}

// Normalize scales raw scores, the largest of which is most, to the range 0 to
// MaxScore. With reverse, the smallest gets the best score.
func Normalize(raw, most int64, reverse bool) int64 {
	score := int64(0)
	if most > 0 {
		score = MaxScore * raw / most
	}
	if reverse {
		return MaxScore - score
	}
	return score
}

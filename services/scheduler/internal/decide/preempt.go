package decide

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/scheduler/internal/plugin"
	"keelson.dev/services/scheduler/internal/state"
)

// Limits of the search for a node, as in Kubernetes' default profile: it ends once it has
// found a tenth of the nodes in question, but not before it has found leastCandidates.
const (
	leastCandidates  = 100
	candidatePercent = 10
)

// Preemption is what pods of lower priority can do for a pod that no node has room for:
// leave the one node on which that costs least.
//
// It never has victims of the pod's priority or a higher one, and the pod fits the node
// once they have gone. Putting back any one of them would leave the pod without room.
type Preemption struct {
	// Node is where the pod will fit, and is to be nominated for; nil if preemption does
	// not help, or must not happen now.
	Node *state.Node
	// Victims are to leave the node, the most important first. Some may be terminating
	// already.
	Victims []*state.Pod
	// Violations is the number of victims that exceed a PodDisruptionBudget.
	Violations int
	// Outranked are pods of lower priority that are nominated for the node. They lose
	// that.
	Outranked []*state.Pod
	// Keep is true if Node is nil but an earlier nomination of the pod stands.
	Keep bool
	// Message explains the result in Kubernetes' words.
	Message string

	sum, earliest int64 // of Victims
}

// Budget is a PodDisruptionBudget.
type Budget struct {
	Selector labels.Selector
	// Allowed is the number of pods that may still be disrupted, besides those of
	// Disrupted.
	Allowed   int32
	Disrupted func(name string) bool
}

// Surroundings are what a preemption depends on besides nodes and their pods.
type Surroundings struct {
	// Budgets returns the PodDisruptionBudgets of a namespace, whose revision changes
	// with any of any namespace.
	Budgets  func(namespace string) []*Budget
	Revision uint64
	// Evicting reports whether the eviction of a pod is under way, though the pod does
	// not show it yet.
	Evicting func(key state.Key, uid types.UID) bool
}

// Reasons that are not those of a filter.
const (
	noVictims = "No preemption victims found for incoming pod"
	unhelpful = "Preemption is not helpful for scheduling"
)

var noVictimsOnly = []string{noVictims}

// Preempt decides which pods should leave which node for a pod that Decide, called just
// before with the same filters, found no node for.
func (e *Engine) Preempt(p *state.Pod, around Surroundings, extra ...plugin.Filter) *Preemption {
	if policy := p.Object.Spec.PreemptionPolicy; policy != nil && *policy == corev1.PreemptNever {
		return &Preemption{Keep: true, Message: "preemption: not eligible due to preemptionPolicy=Never."}
	}
	var c *class
	names, only := plugin.OnlyNodes(p)
	if !only {
		c = e.class(p)
		c.update()
		if !e.env.Outranks(p.Priority) {
			return &Preemption{Message: e.outranksNone(c, p, extra)}
		}
	}
	s := &search{engine: e, around: around}
	if only {
		s.rules = e.newRules(p, extra)
		for name := range names {
			if n := e.env.Node(name); n != nil {
				s.consider(n)
			}
		}
		slices.SortFunc(s.nodes, func(a, b *state.Node) int { return a.Index - b.Index })
	} else {
		s.rules = c.rules(p, extra)
		for i, n := range e.env.Nodes {
			switch {
			case n == nil:
			case c.refused[i] == 0:
				s.consider(n)
			case c.kinds[c.refused[i]].curable:
				s.nodes = append(s.nodes, n)
			}
		}
		if len(extra) == 0 {
			s.kept = c.keptDry(p.Priority, around.Revision)
		}
	}
	if s.waits() {
		return &Preemption{Keep: true, Message: "preemption: not eligible due to a terminating pod on the nominated node."}
	}
	s.run()
	if s.best == nil {
		s.reasons.count(unhelpful, e.env.NodeCount()-len(s.nodes))
		return &Preemption{Message: "preemption: " + s.reasons.refusal(e.env.NodeCount()).message}
	}
	best := *s.best
	best.Message = fmt.Sprintf("preemption: found a potential placement for pod on node %s, preempting %d victims", best.Node.Name, len(best.Victims))
	for _, q := range best.Node.Nominated {
		if q.Priority < p.Priority {
			best.Outranked = append(best.Outranked, q)
		}
	}
	return &best
}

// RefusedPreemption returns the result for a pod that Refuse refused: no pod is the cause.
func (e *Engine) RefusedPreemption(p *state.Pod) *Preemption {
	if policy := p.Object.Spec.PreemptionPolicy; policy != nil && *policy == corev1.PreemptNever {
		return &Preemption{Keep: true, Message: "preemption: not eligible due to preemptionPolicy=Never."}
	}
	var reasons tally
	reasons.count(unhelpful, e.env.NodeCount())
	return &Preemption{Message: "preemption: " + reasons.refusal(e.env.NodeCount()).message}
}

// outranksNone explains why a pod that has a higher priority than no other pod gets no
// room. That is the case of nearly all refused pods, so it costs little.
func (e *Engine) outranksNone(c *class, p *state.Pod, extra []plugin.Filter) string {
	plain := len(extra) == 0 && e.env.Nominations() == 0
	if plain && c.outranksNone != "" && c.outranksNoneAt == c.now() {
		return c.outranksNone
	}
	refused, curable := 0, 0
	for by, n := range c.counts {
		refused += n
		if c.kinds[by].curable {
			curable += n
		}
	}
	if refused < e.env.NodeCount() {
		s := &search{engine: e, rules: c.rules(p, extra)}
		for i, n := range e.env.Nodes {
			if n != nil && c.refused[i] == 0 {
				s.consider(n)
			}
		}
		curable += len(s.nodes)
	}
	var reasons tally
	reasons.count(noVictims, curable)
	reasons.count(unhelpful, e.env.NodeCount()-curable)
	message := "preemption: " + reasons.refusal(e.env.NodeCount()).message
	if plain {
		c.outranksNone, c.outranksNoneAt = message, c.now()
	}
	return message
}

// search looks for the node on which preemption costs least.
type search struct {
	engine *Engine
	rules  *rules
	around Surroundings
	// nodes are those that would be feasible without some of their pods, perhaps.
	nodes   []*state.Node
	reasons tally
	best    *Preemption
	// kept holds earlier results by node index; nil if there are none.
	kept []dried
}

// consider adds a node that the pod does not fit, unless its pods are not the cause.
func (s *search) consider(n *state.Node) {
	s.engine.fits(s.rules, n, func(f plugin.Filter) {
		if plugin.IsCurable(f, n) {
			s.nodes = append(s.nodes, n)
		}
	})
}

// waits reports whether pods that were preempted for the pod still leave its node.
func (s *search) waits() bool {
	p := s.rules.pod
	nominee := s.engine.env.Nominee(state.Key{Namespace: p.Namespace, Name: p.Name})
	if nominee == nil {
		return false
	}
	n := s.engine.env.Node(nominee.Node)
	return n != nil && slices.Contains(s.nodes, n) && slices.ContainsFunc(n.Pods, func(q *state.Pod) bool {
		return q.Priority < p.Priority && (q.Preempted || s.evicting(q))
	})
}

func (s *search) evicting(q *state.Pod) bool {
	return s.around.Evicting != nil && s.around.Evicting(state.Key{Namespace: q.Namespace, Name: q.Name}, q.UID)
}

// run looks at one node after the other, beginning where the last search ended.
func (s *search) run() {
	e := s.engine
	enough := max(leastCandidates, len(s.nodes)*candidatePercent/100)
	start, _ := slices.BinarySearchFunc(s.nodes, e.preemptTurn, func(n *state.Node, turn int) int { return n.Index - turn })
	found := 0
	for i := range s.nodes {
		n := s.nodes[(start+i)%len(s.nodes)]
		r := s.dry(n)
		candidate := r.plan
		if candidate == nil {
			for _, reason := range r.reasons {
				s.reasons.count(reason, 1)
			}
			continue
		}
		if s.best == nil || cheaper(candidate, s.best) {
			s.best = candidate
		}
		// Without a candidate that respects all budgets, go on.
		if found++; found >= enough && s.best.Violations == 0 {
			e.preemptTurn = n.Index + 1
			break
		}
	}
}

// dry finds the victims on a node, if that is not known.
func (s *search) dry(n *state.Node) dried {
	own := func(q *state.Pod) bool { return q.UID == s.rules.pod.UID }
	if n.Index >= len(s.kept) || slices.ContainsFunc(n.Nominated, own) {
		return s.find(n)
	}
	if !s.kept[n.Index].known {
		s.kept[n.Index] = s.find(n)
	}
	return s.kept[n.Index]
}

// keptDry returns the results of earlier searches for pods like this one, to be used and
// filled in; nil if they depend on more than the node itself.
func (c *class) keptDry(priority int32, budgets uint64) []dried {
	for _, g := range c.global {
		if g, ok := g.(interface{ Idle() bool }); !ok || !g.Idle() {
			return nil
		}
	}
	if c.dryPriority != priority || c.dryBudgets != budgets {
		c.dry, c.dryPriority, c.dryBudgets = nil, priority, budgets
	}
	if n := len(c.env.Nodes); len(c.dry) < n {
		c.dry = append(c.dry, make([]dried, n-len(c.dry))...)
	}
	return c.dry
}

// find finds the victims on a node.
func (s *search) find(n *state.Node) dried {
	e, p := s.engine, s.rules.pod
	low := e.low[:0]
	for _, q := range n.Pods {
		if q.Priority < p.Priority {
			low = append(low, q)
		}
	}
	e.low = low
	out := dried{known: true}
	if len(low) == 0 {
		out.reasons = noVictimsOnly
		return out
	}
	t := e.env.Try(s.rules.changed)
	defer t.Undo(0)
	for _, q := range low {
		t.Remove(n, q)
	}
	if !e.fits(s.rules, n, func(f plugin.Filter) { out.reasons = f.Explain(n) }) {
		return out
	}
	s.rules.settled = true
	defer func() { s.rules.settled = false }()
	slices.SortFunc(low, importance)
	plan := &Preemption{Node: n}
	violating, others := s.split(low)
	// As many as possible may stay: first those whose eviction exceeds a budget, and
	// the more important ones before the others.
	for i, part := range [2][]*state.Pod{violating, others} {
		for _, q := range part {
			mark := t.Mark()
			t.Add(n, q)
			if e.fits(s.rules, n, nil) {
				continue
			}
			t.Undo(mark)
			plan.Victims = append(plan.Victims, q)
			if i == 0 {
				plan.Violations++
			}
		}
	}
	slices.SortFunc(plan.Victims, importance)
	plan.sum, plan.earliest = sum(plan.Victims), earliest(plan.Victims)
	out.plan = plan
	return out
}

// split separates the pods whose eviction would exceed a budget if all were evicted in
// this order.
func (s *search) split(pods []*state.Pod) (violating, others []*state.Pod) {
	if s.around.Budgets == nil {
		return nil, pods
	}
	left := map[*Budget]int32{}
	exceeds := func(q *state.Pod) bool {
		if len(q.Labels) == 0 {
			return false
		}
		for _, b := range s.around.Budgets(q.Namespace) {
			if b.Selector.Empty() || !b.Selector.Matches(q.Labels) || b.Disrupted != nil && b.Disrupted(q.Name) {
				continue
			}
			if _, known := left[b]; !known {
				left[b] = b.Allowed
			}
			if left[b]--; left[b] < 0 {
				return true
			}
		}
		return false
	}
	for _, q := range pods {
		if exceeds(q) {
			violating = append(violating, q)
		} else {
			others = append(others, q)
		}
	}
	return violating, others
}

// importance orders pods by priority, and then by how long they run.
func importance(a, b *state.Pod) int {
	return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(a.Started, b.Started),
		cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// cheaper reports whether a preemption does less harm than another, by Kubernetes' rules:
// fewer violations of budgets, then the lower priority of the most important victim, then
// the lower sum of priorities, then fewer victims, and last the victims that started
// later.
func cheaper(a, b *Preemption) bool {
	return cmp.Or(
		cmp.Compare(a.Violations, b.Violations),
		cmp.Compare(a.Victims[0].Priority, b.Victims[0].Priority),
		cmp.Compare(a.sum, b.sum),
		cmp.Compare(len(a.Victims), len(b.Victims)),
		cmp.Compare(b.earliest, a.earliest),
	) < 0
}

// sum adds up priorities, as if the lowest possible one were 0.
func sum(pods []*state.Pod) int64 {
	var out int64
	for _, p := range pods {
		out += int64(p.Priority) - math.MinInt32
	}
	return out
}

// earliest returns when the first of the most important pods started.
func earliest(pods []*state.Pod) int64 {
	out := pods[0].Started
	for _, p := range pods {
		if p.Priority == pods[0].Priority {
			out = min(out, p.Started)
		}
	}
	return out
}

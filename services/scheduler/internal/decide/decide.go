// Package decide chooses the node for a pod. Pods that are alike to the scheduler share
// one evaluation of all nodes, which is updated incrementally from the log of changes.
// A typical decision therefore asks plugins about one node only and otherwise walks
// over plain arrays.
//
// It must never change the state; the caller does that, according to the verdict.
package decide

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"

	"keelson.dev/services/scheduler/internal/plugin"
	"keelson.dev/services/scheduler/internal/state"
)

// maxClasses is the number of evaluations that are kept.
const maxClasses = 256

// Engine makes decisions. It belongs to the goroutine that owns the state.
type Engine struct {
	env     *plugin.Env
	classes map[string]*class
	clock   uint64
	// turn is where the search for the best node begins, so that nodes with equal
	// scores take turns.
	turn int
	// preemptTurn is where the search for victims begins.
	preemptTurn int

	low      []*state.Pod
	key      []byte
	feasible []*state.Node
	totals   []int64
	scores   []int64
}

// New returns an engine.
func New(env *plugin.Env) *Engine {
	return &Engine{env: env, classes: map[string]*class{}}
}

// Verdict is the result of a decision.
type Verdict struct {
	// Node is the best node, or nil if none is feasible.
	Node *state.Node
	// Feasible is the number of feasible nodes among Nodes.
	Feasible, Nodes int
	// Message explains in Kubernetes' words why no node is feasible. Plugins lists the
	// plugins that refused at least one.
	Message string
	Plugins []string
	// Class is the same for pods that are alike to the scheduler.
	Class string
}

// Decide chooses a node. extra are filters for this particular pod (its volumes); their
// refusals count after those of the local filters.
func (e *Engine) Decide(p *state.Pod, extra ...plugin.Filter) *Verdict {
	if e.env.NodeCount() == 0 {
		return &Verdict{Message: "no nodes available to schedule pods", Plugins: []string{plugin.NodeAffinity}}
	}
	if names, only := plugin.OnlyNodes(p); only {
		return e.among(p, names, extra)
	}
	c := e.class(p)
	c.update()
	var r *rules // where pods are nominated
	if e.env.Nominations() > 0 {
		r = c.rules(p, extra)
	}
	e.feasible = e.feasible[:0]
nodes:
	for i, n := range e.env.Nodes {
		if n == nil || c.refused[i] != 0 {
			continue
		}
		for _, f := range extra {
			if !f.Check(n) {
				continue nodes
			}
		}
		for _, f := range c.global {
			if !f.Check(n) {
				continue nodes
			}
		}
		if len(n.Nominated) > 0 && !e.fits(r, n, nil) {
			continue
		}
		e.feasible = append(e.feasible, n)
	}
	v := &Verdict{Nodes: e.env.NodeCount(), Feasible: len(e.feasible)}
	if len(e.feasible) == 0 {
		why := e.explain(c, r, extra)
		v.Message, v.Plugins, v.Class = why.message, why.plugins, c.key
		return v
	}
	if v.Node = e.nominated(p); v.Node != nil && slices.Contains(e.feasible, v.Node) {
		return v
	}
	v.Node = e.best(c)
	e.turn = v.Node.Index + 1
	return v
}

// nominated returns the node that a pod is nominated for, or nil.
func (e *Engine) nominated(p *state.Pod) *state.Node {
	if q := e.env.Nominee(state.Key{Namespace: p.Namespace, Name: p.Name}); q != nil {
		return e.env.Node(q.Node)
	}
	return nil
}

// Refuse returns the verdict on a pod that cannot be scheduled for a reason that does
// not depend on any node.
func (e *Engine) Refuse(p *state.Pod, plugin, reason string) *Verdict {
	n := e.env.NodeCount()
	return &Verdict{
		Nodes: n, Message: fmt.Sprintf("0/%d nodes are available: %s.", n, reason),
		Plugins: []string{plugin}, Class: p.Namespace + "/" + p.Name,
	}
}

// class returns the evaluation for a pod, and makes it if there is none.
func (e *Engine) class(p *state.Pod) *class {
	e.clock++
	e.key = keyOf(p, e.key[:0])
	c := e.classes[string(e.key)]
	if c == nil {
		if len(e.classes) >= maxClasses {
			e.evict()
		}
		c = newClass(e.env, p, string(e.key))
		e.classes[c.key] = c
	}
	c.used = e.clock
	return c
}

// evict drops the least recently used half of the evaluations.
func (e *Engine) evict() {
	used := make([]uint64, 0, len(e.classes))
	for _, c := range e.classes {
		used = append(used, c.used)
	}
	slices.Sort(used)
	for key, c := range e.classes {
		if c.used < used[len(used)/2] {
			delete(e.classes, key)
		}
	}
}

// best returns the feasible node with the highest score. Nodes with equal scores take
// turns.
func (e *Engine) best(c *class) *state.Node {
	if len(e.feasible) == 1 {
		return e.feasible[0]
	}
	e.totals = append(e.totals[:0], make([]int64, len(e.feasible))...)
	for i, n := range e.feasible {
		e.totals[i] = int64(c.score[n.Index])
	}
	e.normalize(c.avoided, taintWeight, true)
	e.normalize(c.liked, affinityWeight, false)
	if c.spread != nil {
		e.scores = append(e.scores[:0], e.totals...)
		c.spread.Scores(e.feasible, e.scores)
		e.plus(spreadWeight)
	}
	if c.affinity.Matters() {
		e.scores = append(e.scores[:0], e.totals...)
		c.affinity.Scores(e.feasible, e.scores)
		e.plus(podsWeight)
	}
	at := 0
	for i := range e.totals {
		if e.totals[i] > e.totals[at] || e.totals[i] == e.totals[at] && e.before(e.feasible[i].Index, e.feasible[at].Index) {
			at = i
		}
	}
	return e.feasible[at]
}

// before reports whether the first of two nodes with equal scores is preferred.
func (e *Engine) before(a, b int) bool {
	if (a >= e.turn) != (b >= e.turn) {
		return a >= e.turn
	}
	return a < b
}

func (e *Engine) normalize(raw []int64, weight int64, reverse bool) {
	if raw == nil {
		return
	}
	var most int64
	for _, n := range e.feasible {
		if n.Index < len(raw) {
			most = max(most, raw[n.Index])
		}
	}
	for i, n := range e.feasible {
		var v int64
		if n.Index < len(raw) {
			v = raw[n.Index]
		}
		e.totals[i] += weight * plugin.Normalize(v, most, reverse)
	}
}

func (e *Engine) plus(weight int64) {
	for i, v := range e.scores {
		e.totals[i] += weight * v
	}
}

// among decides for a pod that may run only on the named nodes.
func (e *Engine) among(p *state.Pod, names sets.Set[string], extra []plugin.Filter) *Verdict {
	r := e.newRules(p, extra)
	nominated := e.nominated(p)
	v := &Verdict{Nodes: e.env.NodeCount()}
	reasons := tally{}
	var best int64 = -1
	known := 0
	for name := range names {
		n := e.env.Node(name)
		if n == nil {
			continue
		}
		known++
		if !e.fits(r, n, func(f plugin.Filter) { reasons.add(f, n) }) {
			continue
		}
		v.Feasible++
		score := plugin.LeastAllocated(p, n) + plugin.BalancedAllocation(p, n)
		if n == nominated {
			score = math.MaxInt64
		}
		if score > best {
			best, v.Node = score, n
		}
	}
	if v.Node == nil {
		if others := v.Nodes - known; others > 0 {
			reasons.count("node(s) didn't satisfy plugin(s) [NodeAffinity]", others)
			reasons.by(plugin.NodeAffinity)
		}
		why := reasons.refusal(v.Nodes)
		v.Message, v.Plugins, v.Class = why.message, why.plugins, p.Namespace+"/"+p.Name
	}
	return v
}

func refuses(filters []plugin.Filter, n *state.Node) plugin.Filter {
	for _, f := range filters {
		if !f.Check(n) {
			return f
		}
	}
	return nil
}

// explain sets the message that explains why there is no node. r is nil if no pod is
// nominated.
func (e *Engine) explain(c *class, r *rules, extra []plugin.Filter) *refusal {
	if r == nil && len(extra) == 0 && c.message != nil && c.messageAt == c.now() {
		return c.message
	}
	reasons := tally{}
	refused := 0
	for by, n := range c.counts {
		refused += n
		for _, reason := range c.kinds[by].reasons {
			reasons.count(reason, n)
		}
		reasons.by(c.filters[by.filter()].Name())
	}
	for i, n := range e.env.Nodes {
		if refused == e.env.NodeCount() {
			break
		}
		if n == nil || c.refused[i] != 0 {
			continue
		}
		f := refuses(extra, n)
		if f == nil {
			for _, g := range c.global {
				if !g.Check(n) {
					f = g
					break
				}
			}
		}
		if f != nil {
			reasons.add(f, n)
		} else if r != nil {
			e.fits(r, n, func(f plugin.Filter) { reasons.add(f, n) })
		}
	}
	why := reasons.refusal(e.env.NodeCount())
	if r == nil && len(extra) == 0 {
		c.message, c.messageAt = why, c.now()
	}
	return why
}

// tally counts reasons.
type tally struct {
	reasons map[string]int
	plugins sets.Set[string]
}

func (t *tally) add(f plugin.Filter, n *state.Node) {
	for _, reason := range f.Explain(n) {
		t.count(reason, 1)
	}
	t.by(f.Name())
}

func (t *tally) count(reason string, n int) {
	if n == 0 {
		return
	}
	if t.reasons == nil {
		t.reasons = map[string]int{}
	}
	t.reasons[reason] += n
}

func (t *tally) by(name string) {
	if t.plugins == nil {
		t.plugins = sets.New[string]()
	}
	t.plugins.Insert(name)
}

// refusal formats the reasons in Kubernetes' words.
func (t *tally) refusal(nodes int) *refusal {
	parts := make([]string, 0, len(t.reasons))
	for reason, n := range t.reasons {
		parts = append(parts, fmt.Sprintf("%d %s", n, reason))
	}
	sort.Strings(parts)
	message := fmt.Sprintf("0/%d nodes are available:", nodes)
	if len(parts) > 0 {
		message += " " + strings.Join(parts, ", ") + "."
	}
	return &refusal{message: message, plugins: sets.List(t.plugins)}
}

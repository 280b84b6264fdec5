package decide

import (
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/scheduler/internal/plugin"
	"keelson.dev/services/scheduler/internal/state"
)

// The weights of scores, as in Kubernetes' default profile. Those of the local scores
// (resources and images) are 1.
const (
	taintWeight    = 3
	affinityWeight = 2
	spreadWeight   = 2
	podsWeight     = 2
)

// class is the evaluation shared by all pods that are alike to the scheduler.
type class struct {
	key     string
	env     *plugin.Env
	pod     *state.Pod
	filters []plugin.Filter
	global  []plugin.Shared
	image   func(*state.Node) int64
	prefer  func(*state.Node) int64

	spread   *plugin.Spread
	affinity *plugin.Affinity

	// By node index: the local filter that refuses the node, counted from 1; the sum of
	// the local scores; and raw scores that are normalized later, nil as long as all
	// are 0.
	refused  []refusedBy
	counts   map[refusedBy]int // nodes refused in each way
	kinds    map[refusedBy]kind
	score    []int32
	avoided  []int64
	liked    []int64
	position uint64
	epoch    uint64
	// selector is the default selector when Env.Selectors was selectors.
	selector  string
	selectors uint64

	used uint64
	// message explains why there is no node, as of a moment.
	message   *refusal
	messageAt moment
	// outranksNone is the message for a pod that has no higher priority than any other.
	outranksNone   string
	outranksNoneAt moment
	// dry holds results of the search for victims by node index, for pods of one
	// priority and one state of the budgets. Changed nodes are dropped, but not those of
	// which only a pod's Started has changed: that decides only between nodes that are
	// otherwise equal.
	dry         []dried
	dryPriority int32
	dryBudgets  uint64
}

// moment holds what a message depends on.
type moment struct{ position, namespaces uint64 }

func (c *class) now() moment { return moment{c.position, c.env.NamespacesSeen} }

// refusedBy is the filter that refuses a node, counted from 1, and its code; 0 means
// that none does.
type refusedBy uint32

func (r refusedBy) filter() int { return int(r>>16) - 1 }

// kind is what all nodes have in common that are refused in the same way.
type kind struct {
	reasons []string
	// curable is true if the refusal may end when pods leave the node.
	curable bool
}

// dried is the result of the search for victims on a node.
type dried struct {
	known   bool
	plan    *Preemption // nil without victims that help
	reasons []string    // why there are none
}

type refusal struct {
	message string
	plugins []string
}

func newClass(env *plugin.Env, p *state.Pod, key string) *class {
	c := &class{key: key, env: env, pod: p}
	c.build()
	return c
}

func (c *class) build() {
	c.filters = plugin.Local(c.pod)
	c.image = plugin.ImageLocality(c.env, c.pod)
	c.prefer = plugin.PreferredNodes(c.pod)
	c.refused = make([]refusedBy, len(c.env.Nodes))
	c.counts, c.kinds = map[refusedBy]int{}, map[refusedBy]kind{}
	c.dry = nil
	c.score = make([]int32, len(c.env.Nodes))
	c.avoided, c.liked = nil, nil
	for _, n := range c.env.Nodes {
		if n != nil {
			c.evaluate(n)
		}
	}
	c.epoch, c.position = c.env.Epoch, c.env.Position()
	c.buildGlobal()
}

func (c *class) buildGlobal() {
	c.global = plugin.Global(c.env, c.pod)
	c.selector, c.selectors = c.env.DefaultSelector(c.pod).String(), c.env.Selectors
	c.spread = plugin.NewSpread(c.env, c.pod)
	c.affinity = plugin.NewAffinity(c.env, c.pod)
}

// evaluate runs the local plugins for a node.
func (c *class) evaluate(n *state.Node) {
	for len(c.refused) <= n.Index {
		c.refused = append(c.refused, 0)
		c.score = append(c.score, 0)
	}
	if n.Index < len(c.dry) {
		c.dry[n.Index] = dried{}
	}
	by := c.refuses(n)
	c.count(n.Index, by)
	if by != 0 {
		if _, known := c.kinds[by]; !known {
			f := c.filters[by.filter()]
			c.kinds[by] = kind{reasons: f.Explain(n), curable: plugin.IsCurable(f, n)}
		}
		return
	}
	c.score[n.Index] = int32(plugin.LeastAllocated(c.pod, n) + plugin.BalancedAllocation(c.pod, n) + c.image(n))
	if v := plugin.AvoidedTaints(c.pod, n); v != 0 || c.avoided != nil {
		c.avoided = put(c.avoided, n.Index, v)
	}
	if c.prefer != nil {
		c.liked = put(c.liked, n.Index, c.prefer(n))
	}
}

func (c *class) refuses(n *state.Node) refusedBy {
	for i, f := range c.filters {
		if f.Check(n) {
			continue
		}
		by := refusedBy(i+1) << 16
		if f, ok := f.(plugin.Coder); ok {
			by |= refusedBy(f.Code(n))
		}
		return by
	}
	return 0
}

// count records which filter refuses the node of an index.
func (c *class) count(index int, by refusedBy) {
	old := c.refused[index]
	if old == by {
		return
	}
	c.refused[index] = by
	if old != 0 {
		if c.counts[old]--; c.counts[old] == 0 {
			delete(c.counts, old)
		}
	}
	if by != 0 {
		c.counts[by]++
	}
}

func put(to []int64, i int, v int64) []int64 {
	for len(to) <= i {
		to = append(to, 0)
	}
	to[i] = v
	return to
}

// update applies the changes since the last update.
func (c *class) update() {
	changes, known := c.env.Since(c.position)
	if !known || c.epoch != c.env.Epoch || len(changes) > c.env.MaxBehind() {
		c.build()
		changes = nil
	}
	c.position = c.env.Position()
	// Nodes and domains have their current numbers, so changes from before a
	// renumbering cannot be applied one by one.
	const renumbered = state.NodeAdded | state.NodeRemoved | state.NodeLabels
	again := slices.ContainsFunc(changes, func(ch state.Change) bool { return ch.What&renumbered != 0 }) ||
		c.affinity.Stale() || slices.ContainsFunc(c.global, func(g plugin.Shared) bool { return g.Stale() })
	for i := range changes {
		ch := &changes[i]
		switch now := c.env.Nodes[ch.Node.Index]; {
		case now == ch.Node:
			c.evaluate(ch.Node)
		case now == nil && ch.Node.Index < len(c.refused):
			c.count(ch.Node.Index, 0)
		}
		again = again || !c.apply(ch)
	}
	if c.selectors != c.env.Selectors {
		c.selectors = c.env.Selectors
		again = again || c.selector != c.env.DefaultSelector(c.pod).String()
	}
	if again {
		c.buildGlobal()
	}
	for _, g := range c.global {
		g.Refresh()
	}
	c.affinity.Refresh()
}

func (c *class) apply(ch *state.Change) bool {
	for _, g := range c.global {
		if !g.Apply(ch) {
			return false
		}
	}
	return (c.spread == nil || c.spread.Apply(ch)) && c.affinity.Apply(ch)
}

// keyOf returns the same key for pods that are alike to the scheduler. Volumes are not
// part of it.
func keyOf(p *state.Pod, b []byte) []byte {
	text := func(s string) {
		b = strconv.AppendInt(b, int64(len(s)), 36)
		b = append(b, ':')
		b = append(b, s...)
	}
	number := func(n int64) {
		b = strconv.AppendInt(b, n, 36)
		b = append(b, ' ')
	}
	set := func(m map[string]string) {
		keys := make([]string, 0, 8)
		for k := range m {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		number(int64(len(keys)))
		for _, k := range keys {
			text(k)
			text(m[k])
		}
	}
	spec := &p.Object.Spec
	text(p.Namespace)
	set(p.Labels)
	set(spec.NodeSelector)
	for _, n := range []int64{p.Requests.CPU, p.Requests.Memory, p.Requests.Ephemeral, p.ScoreCPU, p.ScoreMemory, int64(len(p.Requests.Others)), int64(len(p.Ports))} {
		number(n)
	}
	for _, a := range p.Requests.Others {
		text(string(a.Name))
		number(a.Value)
	}
	for _, port := range p.Ports {
		text(port.IP)
		text(string(port.Protocol))
		number(int64(port.Port))
	}
	number(int64(len(spec.Tolerations)))
	for i := range spec.Tolerations {
		t := &spec.Tolerations[i]
		text(t.Key)
		text(string(t.Operator))
		text(t.Value)
		text(string(t.Effect))
	}
	images := func(cs []corev1.Container) {
		number(int64(len(cs)))
		for i := range cs {
			text(cs[i].Image)
		}
	}
	images(spec.InitContainers)
	images(spec.Containers)
	for i := range spec.Volumes {
		if v := spec.Volumes[i].Image; v != nil {
			text(v.Reference)
		}
	}
	number(int64(len(spec.TopologySpreadConstraints)))
	for i := range spec.TopologySpreadConstraints {
		text(spec.TopologySpreadConstraints[i].String())
	}
	if spec.Affinity != nil {
		if a, err := spec.Affinity.Marshal(); err == nil {
			text(string(a))
		}
	}
	if len(spec.TopologySpreadConstraints) == 0 { // the default ones ask for the controller
		if o := metav1.GetControllerOfNoCopy(p.Object); o != nil {
			text(o.Kind)
			text(o.Name)
		}
	}
	return b
}

package decide

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/scheduler/internal/plugin"
	"keelson.dev/services/scheduler/internal/state"
)

func (w *world) clone() *world {
	return &world{nodes: w.nodes, pods: maps.Clone(w.pods), namespaces: w.namespaces, nominated: w.nominated}
}

func nameOf(p *corev1.Pod) string { return p.Namespace + "/" + p.Name }

func priorityOf(p *corev1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}

// passes applies all rules to a node as it is.
func (w *world) passes(p *corev1.Pod, n *corev1.Node) bool {
	return w.fits(p, n) && w.tolerates(p, n) && w.selects(p, n) && w.ports(p, n) && w.spreads(p, n) && w.affine(p, n)
}

// passesBeside applies all rules to a node as it is, and with the pods nominated for it
// to which p must yield.
func (w *world) passesBeside(p *corev1.Pod, n *corev1.Node) bool {
	with := w.clone()
	for _, q := range w.nominated {
		if q.Spec.NodeName == n.Name && priorityOf(q) >= priorityOf(p) && q.UID != p.UID {
			with.pods[nameOf(q)] = q
		}
	}
	return w.passes(p, n) && with.passes(p, n)
}

// hopeless reports whether the first rule that refuses the node does not depend on its
// pods.
func (w *world) hopeless(p *corev1.Pod, n *corev1.Node) bool {
	at := w
	with := w.clone()
	for _, q := range w.nominated {
		if q.Spec.NodeName == n.Name && priorityOf(q) >= priorityOf(p) && q.UID != p.UID {
			with.pods[nameOf(q)] = q
		}
	}
	if !with.passes(p, n) {
		at = with
	}
	empty := &world{nodes: w.nodes, namespaces: w.namespaces}
	switch {
	case !at.tolerates(p, n) || !at.selects(p, n):
		return true
	case !at.ports(p, n):
		return false
	case !at.fits(p, n):
		return !empty.fits(p, n)
	case !at.spreads(p, n):
		for _, c := range p.Spec.TopologySpreadConstraints {
			if _, ok := n.Labels[c.TopologyKey]; !ok && c.WhenUnsatisfiable == corev1.DoNotSchedule {
				return true
			}
		}
		return false
	}
	// Affinity that p requires, without any anti-affinity.
	only := &world{nodes: w.nodes, namespaces: w.namespaces, pods: map[string]*corev1.Pod{}}
	for name, q := range at.pods {
		q = q.DeepCopy()
		q.Spec.Affinity = nil
		only.pods[name] = q
	}
	p = p.DeepCopy()
	p.Spec.Affinity.PodAntiAffinity = nil
	return !only.affine(p, n)
}

type refBudget struct {
	namespace string
	selector  *metav1.LabelSelector
	allowed   int
	disrupted string // the name of a pod
}

// refVictims is the plain reference for one node: nil without victims that help.
func (w *world) refVictims(p *corev1.Pod, n *corev1.Node, budgets []refBudget) (victims []*corev1.Pod, violations int) {
	if w.hopeless(p, n) {
		return nil, 0
	}
	without := w.clone()
	var low []*corev1.Pod
	for _, q := range w.on(n) {
		if priorityOf(q) < priorityOf(p) {
			low = append(low, q)
			delete(without.pods, nameOf(q))
		}
	}
	if len(low) == 0 || !without.passesBeside(p, n) {
		return nil, 0
	}
	order := func(a, b *corev1.Pod) int {
		return cmp.Or(cmp.Compare(priorityOf(b), priorityOf(a)), cmp.Compare(startOf(a), startOf(b)), cmp.Compare(nameOf(a), nameOf(b)))
	}
	slices.SortFunc(low, order)
	var parts [2][]*corev1.Pod
	left := make([]int, len(budgets))
	for i := range budgets {
		left[i] = budgets[i].allowed
	}
	for _, q := range low {
		part := 1
		for i, b := range budgets {
			sel, err := metav1.LabelSelectorAsSelector(b.selector)
			if err != nil || len(q.Labels) == 0 || sel.Empty() || b.namespace != q.Namespace || !sel.Matches(labels.Set(q.Labels)) || b.disrupted == q.Name {
				continue
			}
			if left[i]--; left[i] < 0 {
				part = 0
				break
			}
		}
		parts[part] = append(parts[part], q)
	}
	for i, part := range parts {
		for _, q := range part {
			without.pods[nameOf(q)] = q
			if without.passesBeside(p, n) {
				continue
			}
			delete(without.pods, nameOf(q))
			victims = append(victims, q)
			if i == 0 {
				violations++
			}
		}
	}
	slices.SortFunc(victims, order)
	return victims, violations
}

func startOf(p *corev1.Pod) int64 {
	if p.Status.StartTime == nil {
		return math.MaxInt64
	}
	return p.Status.StartTime.UnixNano()
}

// cost lists, in their order, what decides between nodes.
func cost(victims []*corev1.Pod, violations int) []int64 {
	top := priorityOf(victims[0])
	var sum int64
	first := int64(math.MaxInt64)
	for _, q := range victims {
		sum += int64(priorityOf(q)) + 1<<31
		if priorityOf(q) == top {
			first = min(first, startOf(q))
		}
	}
	return []int64{int64(violations), int64(top), sum, int64(len(victims)), -first}
}

// TestPreemptionFindsWhatTheReferenceFinds compares victims and nodes on random clusters
// with the reference, and checks what must always hold.
func TestPreemptionFindsWhatTheReferenceFinds(t *testing.T) {
	seeds := 250
	if testing.Short() {
		seeds = 40
	}
	preempted, violated, beside, none := 0, 0, 0, 0
	for seed := range seeds {
		d := dice{rand.New(rand.NewPCG(uint64(seed), 41))}
		w := &world{nodes: map[string]*corev1.Node{}, pods: map[string]*corev1.Pod{}, namespaces: map[string]labels.Set{}}
		env := newEnv()
		e := New(env)
		for i := range 2 {
			name := fmt.Sprint("ns", i)
			w.namespaces[name] = labels.Set{"team": []string{"x", "y"}[d.IntN(2)]}
			env.SetNamespace(name, w.namespaces[name])
		}
		for i := range 1 + d.IntN(6) {
			n := d.node(i)
			w.nodes[n.Name] = n
			env.SetNode(n)
		}
		for i := range 40 {
			p := prioritized(d, i, int32(d.IntN(3)))
			if p.Spec.NodeName = d.placeFor(w, p); p.Spec.NodeName == "" {
				continue
			}
			if d.chance(10) {
				now := metav1.Now()
				p.DeletionTimestamp = &now
			}
			w.pods[nameOf(p)] = p
			env.SetPod(state.NewPod(p))
		}
		var budgets []refBudget
		for range d.IntN(3) {
			b := refBudget{namespace: fmt.Sprint("ns", d.IntN(2)), selector: d.selector(), allowed: d.IntN(3)}
			if d.chance(30) {
				b.disrupted = fmt.Sprintf("pod-%05d", d.IntN(40))
			}
			budgets = append(budgets, b)
		}
		around := Surroundings{Budgets: func(namespace string) []*Budget {
			var out []*Budget
			for _, b := range budgets {
				if b.namespace == namespace {
					out = append(out, &Budget{Selector: state.Selector(b.selector), Allowed: int32(b.allowed), Disrupted: func(name string) bool { return name == b.disrupted }})
				}
			}
			return out
		}}
		// The budgets must be the same objects in each call.
		cached := map[string][]*Budget{"ns0": around.Budgets("ns0"), "ns1": around.Budgets("ns1")}
		around.Budgets = func(namespace string) []*Budget { return cached[namespace] }
		for i := range 12 {
			p := prioritized(d, 100+i, int32(1+d.IntN(4)))
			sp := state.NewPod(p)
			var fit []string
			for name, n := range w.nodes {
				if w.passesBeside(p, n) {
					fit = append(fit, name)
				}
			}
			before := snapshot(env.Cluster)
			v := e.Decide(sp)
			if (v.Node == nil) != (len(fit) == 0) || v.Node != nil && !slices.Contains(fit, v.Node.Name) {
				t.Fatalf("seed %d pod %d: decided for %v of %v", seed, i, v.Node, fit)
			}
			if v.Node != nil {
				continue // never victims for a pod that fits
			}
			got := e.Preempt(sp, around)
			if after := snapshot(env.Cluster); after != before {
				t.Fatalf("seed %d pod %d: the search changed the state:\n%s\nto\n%s", seed, i, before, after)
			}
			var least []int64
			want := map[string][]*corev1.Pod{}
			costs := map[string][]int64{}
			for name, n := range w.nodes {
				if victims, violations := w.refVictims(p, n, budgets); len(victims) > 0 {
					want[name], costs[name] = victims, cost(victims, violations)
					if least == nil || slices.Compare(costs[name], least) < 0 {
						least = costs[name]
					}
				}
			}
			if got.Node == nil {
				if none++; len(want) > 0 {
					t.Fatalf("seed %d pod %d: %s, want victims %v\n%s\n%s", seed, i, got.Message, costs, p.Spec.String(), w.describe())
				}
				continue
			}
			var names, wanted []string
			for _, q := range got.Victims {
				names = append(names, q.Namespace+"/"+q.Name)
				if q.Priority >= sp.Priority {
					t.Fatalf("seed %d pod %d: victim %s has priority %d, the pod %d", seed, i, q.Name, q.Priority, sp.Priority)
				}
			}
			for _, q := range want[got.Node.Name] {
				wanted = append(wanted, nameOf(q))
			}
			if !slices.Equal(names, wanted) || int64(got.Violations) != costs[got.Node.Name][0] {
				t.Fatalf("seed %d pod %d on %s: victims %v with %d violations, want %v, %v\n%s", seed, i, got.Node.Name, names, got.Violations, wanted, costs[got.Node.Name], w.describe())
			}
			if slices.Compare(costs[got.Node.Name], least) != 0 {
				t.Fatalf("seed %d pod %d: node %s costs %v, others %v", seed, i, got.Node.Name, costs[got.Node.Name], costs)
			}
			preempted++
			violated += got.Violations
			after := w.clone()
			for _, name := range names {
				delete(after.pods, name)
			}
			n := w.nodes[got.Node.Name]
			if !after.passesBeside(p, n) {
				t.Fatalf("seed %d pod %d: it does not fit %s without %v", seed, i, n.Name, names)
			}
			if len(p.Spec.TopologySpreadConstraints) == 0 && p.Spec.Affinity.PodAffinity == nil {
				for _, q := range want[n.Name] {
					after.pods[nameOf(q)] = q
					if after.passesBeside(p, n) {
						t.Fatalf("seed %d pod %d: victim %s could stay", seed, i, nameOf(q))
					}
					delete(after.pods, nameOf(q))
				}
			}
			// The room is the pod's now.
			if len(got.Outranked) > 0 {
				for _, q := range got.Outranked {
					env.Withdraw(state.Key{Namespace: q.Namespace, Name: q.Name})
				}
				w.nominated = slices.DeleteFunc(w.nominated, func(q *corev1.Pod) bool {
					return q.Spec.NodeName == n.Name && priorityOf(q) < priorityOf(p)
				})
			}
			env.Nominate(sp, n.Name)
			beside += len(w.nominated)
			q := p.DeepCopy()
			q.Spec.NodeName = n.Name
			w.nominated = append(w.nominated, q)
			if d.chance(50) { // the victims leave
				w.pods = after.pods
				for _, q := range got.Victims {
					env.RemovePod(state.Key{Namespace: q.Namespace, Name: q.Name})
				}
			}
		}
	}
	if preempted < seeds || violated == 0 || beside == 0 || none == 0 {
		t.Fatalf("too little happened: %d preemptions, %d violations, %d beside nominated pods, %d without a node", preempted, violated, beside, none)
	}
}

func prioritized(d dice, i int, priority int32) *corev1.Pod {
	p := d.pod(i)
	p.UID = types.UID(p.Name)
	p.Spec.Priority = &priority
	if d.chance(80) {
		at := metav1.NewTime(time.Unix(int64(1000+d.IntN(5)), 0))
		p.Status.StartTime = &at
	}
	return p
}

func (d dice) placeFor(w *world, p *corev1.Pod) string {
	names := slices.Sorted(maps.Keys(w.nodes))
	for _, i := range d.Perm(len(names)) {
		n := w.nodes[names[i]]
		if w.fits(p, n) && w.ports(p, n) {
			return n.Name
		}
	}
	return ""
}

// snapshot describes what a trial must restore.
func snapshot(c *state.Cluster) string {
	out := fmt.Sprint(c.Position(), c.PodCount())
	for _, n := range c.Nodes {
		if n == nil {
			continue
		}
		var pods []string
		for _, p := range n.Pods {
			pods = append(pods, p.Namespace+"/"+p.Name)
		}
		slices.Sort(pods)
		out += fmt.Sprintln(n.Name, n.Requested.CPU, n.Requested.Other("example.com/gpu"), n.ScoreCPU, n.ScoreMemory, pods)
	}
	for _, g := range c.Groups {
		if g.Total != 0 {
			out += fmt.Sprint(g.Term.ID, g.Total)
			for d, count := range g.Counts {
				if count != 0 {
					out += fmt.Sprint(" ", d, ":", count)
				}
			}
		}
	}
	return out
}

func sized(name, cpu string, priority int32) *corev1.Pod {
	p := testPod(0)
	p.Name, p.UID, p.Spec.Priority = name, types.UID(name), &priority
	p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"cpu": resource.MustParse(cpu)}
	return p
}

// full is a cluster whose nodes have one pod of 4 CPUs and priority 0 each.
func full(nodes int) (*plugin.Env, *Engine) {
	env := newEnv()
	for i := range nodes {
		n := testNode(i, 3)
		env.SetNode(n)
		p := sized("low-"+n.Name, "4", 0)
		p.Spec.NodeName = n.Name
		env.SetPod(state.NewPod(p))
	}
	return env, New(env)
}

func (e *Engine) attempt(p *state.Pod, extra ...plugin.Filter) (*Verdict, *Preemption) {
	v := e.Decide(p, extra...)
	if v.Node != nil {
		return v, nil
	}
	return v, e.Preempt(p, Surroundings{}, extra...)
}

func TestPreemptionExplains(t *testing.T) {
	for name, tc := range map[string]struct {
		pod  *corev1.Pod
		prep func(*plugin.Env)
		want string
		keep bool
	}{
		"a node is found": {
			pod: sized("high", "1", 10), want: "preemption: found a potential placement for pod on node node-00000, preempting 1 victims",
		},
		"the policy forbids it": {
			pod: func() *corev1.Pod {
				p, never := sized("high", "1", 10), corev1.PreemptNever
				p.Spec.PreemptionPolicy = &never
				return p
			}(),
			want: "preemption: not eligible due to preemptionPolicy=Never.", keep: true,
		},
		"no lower priority": {
			pod: sized("same", "1", 0), want: "preemption: 0/2 nodes are available: 2 No preemption victims found for incoming pod.",
		},
		"too large for any node": {
			pod: sized("high", "9", 10), want: "preemption: 0/2 nodes are available: 2 Preemption is not helpful for scheduling.",
		},
		"a cordoned node, and one whose pods are more important": {
			pod: sized("high", "1", 10),
			prep: func(env *plugin.Env) {
				n := testNode(0, 3)
				n.Spec.Unschedulable = true
				env.SetNode(n)
				p := sized("low-node-00001", "4", 10)
				p.Spec.NodeName = "node-00001"
				env.SetPod(state.NewPod(p))
			},
			want: "preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling.",
		},
		"the victims are not enough": {
			pod: sized("high", "4", 10),
			prep: func(env *plugin.Env) {
				for i := range 2 {
					name := fmt.Sprintf("node-%05d", i)
					p := sized("low-"+name, "1", 0)
					p.Spec.NodeName = name
					env.SetPod(state.NewPod(p))
					p = sized("peer-"+name, "3", 10)
					p.Spec.NodeName = name
					env.SetPod(state.NewPod(p))
				}
			},
			want: "preemption: 0/2 nodes are available: 2 Insufficient cpu.",
		},
	} {
		env, e := full(2)
		if tc.prep != nil {
			tc.prep(env)
		}
		v, got := e.attempt(state.NewPod(tc.pod))
		if got == nil || got.Message != tc.want || got.Keep != tc.keep {
			t.Errorf("%s: verdict %+v, preemption %+v, want %s", name, v, got, tc.want)
		}
	}
}

func TestAPodWaitsForItsVictims(t *testing.T) {
	env, e := full(1)
	high := state.NewPod(sized("high", "1", 10))
	_, got := e.attempt(high)
	if got.Node == nil || len(got.Victims) != 1 {
		t.Fatalf("%+v", got)
	}
	env.Nominate(high, got.Node.Name)
	victim := got.Victims[0]
	// The eviction is under way.
	if v := e.Decide(high); v.Node != nil {
		t.Fatal("it fits")
	}
	evicting := Surroundings{Evicting: func(key state.Key, _ types.UID) bool { return key.Name == victim.Name }}
	if again := e.Preempt(high, evicting); again.Node != nil || !again.Keep {
		t.Fatalf("while its victim is being evicted: %+v", again)
	}
	// The victim terminates.
	o := sized(victim.Name, "4", 0)
	o.Namespace, o.Spec.NodeName, o.DeletionTimestamp = victim.Namespace, got.Node.Name, &metav1.Time{Time: time.Unix(1, 0)}
	o.Status.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler}}
	env.SetPod(state.NewPod(o))
	if _, again := e.attempt(high); again.Node != nil || !again.Keep {
		t.Fatalf("while its victim terminates: %+v", again)
	}
	// A pod of the same priority may not take the room; a more important one may.
	env.RemovePod(state.Key{Namespace: victim.Namespace, Name: victim.Name})
	if v := e.Decide(state.NewPod(sized("peer", "4", 10))); v.Node != nil {
		t.Fatal("a peer takes the room of the nominated pod")
	} else if v.Message != "0/1 nodes are available: 1 Insufficient cpu." {
		t.Fatal(v.Message)
	}
	if v := e.Decide(state.NewPod(sized("peer", "3", 10))); v.Node == nil {
		t.Fatalf("a peer that fits beside the nominated pod: %s", v.Message)
	}
	if v := e.Decide(state.NewPod(sized("higher", "4", 11))); v.Node == nil {
		t.Fatal("a more important pod yields to the nominated one")
	}
	if v := e.Decide(high); v.Node == nil {
		t.Fatalf("the room is there: %s", v.Message)
	}
}

// Pods that come together must not count on the same room, nor evict more than they need.
func TestManyPodsDoNotShareRoom(t *testing.T) {
	env, e := full(50)
	victims := map[string]bool{}
	for i := range 60 {
		p := state.NewPod(sized(fmt.Sprint("high-", i), "2", 10))
		v, got := e.attempt(p)
		if v.Node != nil {
			t.Fatalf("pod %d fits %s, whose pod still runs", i, v.Node.Name)
		}
		if got.Node == nil {
			t.Fatalf("pod %d: %s", i, got.Message)
		}
		env.Nominate(p, got.Node.Name)
		for _, q := range got.Victims {
			victims[q.Name] = true
		}
	}
	for _, n := range env.Nodes {
		if len(n.Nominated) > 2 {
			t.Errorf("%d pods of 2 CPUs are to go to node %s, which has 4", len(n.Nominated), n.Name)
		}
	}
	if len(victims) > 50 {
		t.Errorf("%d victims", len(victims))
	}
	// All 100 places of the 50 nodes, and no more.
	for i := range 41 {
		p := state.NewPod(sized(fmt.Sprint("more-", i), "2", 10))
		_, got := e.attempt(p)
		if (got.Node != nil) != (i < 40) {
			t.Fatalf("pod %d of 40: %s", i, got.Message)
		}
		if got.Node != nil {
			env.Nominate(p, got.Node.Name)
		}
	}
}

// What is found for one pod is kept for those like it; a pod's own nomination must not be.
func TestAPodThatLooksAgainDoesNotGiveItsRoomAway(t *testing.T) {
	env, e := full(1)
	first, second := state.NewPod(sized("first", "4", 10)), state.NewPod(sized("second", "4", 10))
	_, got := e.attempt(first)
	if got.Node == nil {
		t.Fatal(got.Message)
	}
	env.Nominate(first, got.Node.Name)
	if _, again := e.attempt(first); again.Node == nil {
		t.Fatalf("the first, whose victims were spared: %s", again.Message)
	}
	if _, other := e.attempt(second); other.Node != nil {
		t.Fatal("both are to have the same room")
	}
}

func TestANominatedPodTakesItsNodeFirst(t *testing.T) {
	env := newEnv()
	e := New(env)
	for i := range 3 {
		env.SetNode(testNode(i, 3))
	}
	p := state.NewPod(sized("high", "1", 10))
	env.Nominate(p, "node-00001")
	for range 3 {
		if v := e.Decide(p); v.Node == nil || v.Node.Name != "node-00001" {
			t.Fatalf("%+v", v)
		}
	}
	// A nomination outlives its node, and ends with Withdraw.
	env.RemoveNode("node-00001")
	if v := e.Decide(p); v.Node == nil {
		t.Fatal(v.Message)
	}
	env.SetNode(testNode(1, 3))
	if v := e.Decide(p); v.Node.Name != "node-00001" {
		t.Fatalf("on %s", v.Node.Name)
	}
	env.Withdraw(state.Key{Namespace: p.Namespace, Name: p.Name})
	if n := env.Node("node-00001"); len(n.Nominated) != 0 || env.Nominations() != 0 {
		t.Fatal("still nominated")
	}
}

// BenchmarkPreempt reports preemptions a second: each pod needs three of the four pods of
// a node.
func BenchmarkPreempt(b *testing.B) {
	const nodes, pods = 5000, 5000
	for b.Loop() {
		env := newEnv()
		for i := range nodes {
			n := testNode(i, 3)
			env.SetNode(n)
			for j := range 4 {
				p := sized(fmt.Sprint("low-", i, "-", j), "900m", 0)
				p.Spec.NodeName = n.Name
				env.SetPod(state.NewPod(p))
			}
		}
		e := New(env)
		for i := range pods {
			p := state.NewPod(sized(fmt.Sprint("high-", i), "3", 10))
			if _, got := e.attempt(p); got == nil || got.Node == nil {
				b.Fatalf("pod %d: %+v", i, got)
			} else {
				env.Nominate(p, got.Node.Name)
			}
		}
	}
	b.ReportMetric(pods*float64(b.N)/b.Elapsed().Seconds(), "preemptions/s")
}

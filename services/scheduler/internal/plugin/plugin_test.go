package plugin

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/services/scheduler/internal/state"
)

func env(objects ...any) *Env {
	e := &Env{Cluster: state.New(), DefaultSelector: func(*state.Pod) labels.Selector { return labels.Everything() }}
	for _, o := range objects {
		switch o := o.(type) {
		case *corev1.Node:
			e.SetNode(o)
		case *corev1.Pod:
			e.SetPod(state.NewPod(o))
		}
	}
	for ns, set := range map[string]labels.Set{"default": {"team": "x"}, "other": {"team": "y"}} {
		e.SetNamespace(ns, set)
	}
	return e
}

func node(name string, change ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}},
		Status: corev1.NodeStatus{Allocatable: corev1.ResourceList{
			"cpu": resource.MustParse("4"), "memory": resource.MustParse("10000"), "pods": resource.MustParse("10"),
		}},
	}
	for _, f := range change {
		f(n)
	}
	return n
}

func zone(z string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Labels[corev1.LabelTopologyZone] = z }
}

func taint(s string) func(*corev1.Node) {
	key, effect, _ := strings.Cut(s, ":")
	key, value, _ := strings.Cut(key, "=")
	return func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Value: value, Effect: corev1.TaintEffect(effect)})
	}
}

func cordon(n *corev1.Node) { n.Spec.Unschedulable = true }

func pod(name string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "app"}}},
	}
	for _, f := range change {
		f(p)
	}
	return p
}

func on(n string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Spec.NodeName = n } }

func in(ns string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Namespace = ns } }

func label(k, v string) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Labels[k] = v } }

func asks(kv ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		r := corev1.ResourceList{}
		for i := 0; i < len(kv); i += 2 {
			r[corev1.ResourceName(kv[i])] = resource.MustParse(kv[i+1])
		}
		p.Spec.Containers[0].Resources.Requests = r
	}
}

func tolerate(t corev1.Toleration) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Tolerations = append(p.Spec.Tolerations, t) }
}

func hostPort(ip string, port int32, proto corev1.Protocol) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports, corev1.ContainerPort{HostIP: ip, HostPort: port, Protocol: proto})
	}
}

func app(v string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": v}}
}

func near(key, v string, change ...func(*corev1.PodAffinityTerm)) func(*corev1.Pod) {
	t := corev1.PodAffinityTerm{TopologyKey: key, LabelSelector: app(v)}
	for _, f := range change {
		f(&t)
	}
	return func(p *corev1.Pod) {
		if p.Spec.Affinity == nil {
			p.Spec.Affinity = &corev1.Affinity{}
		}
		if p.Spec.Affinity.PodAffinity == nil {
			p.Spec.Affinity.PodAffinity = &corev1.PodAffinity{}
		}
		a := p.Spec.Affinity.PodAffinity
		a.RequiredDuringSchedulingIgnoredDuringExecution = append(a.RequiredDuringSchedulingIgnoredDuringExecution, t)
	}
}

func apart(key, v string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		if p.Spec.Affinity == nil {
			p.Spec.Affinity = &corev1.Affinity{}
		}
		p.Spec.Affinity.PodAntiAffinity = &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{TopologyKey: key, LabelSelector: app(v)}}}
	}
}

func spreadOver(key string, skew int32, change ...func(*corev1.TopologySpreadConstraint)) func(*corev1.Pod) {
	c := corev1.TopologySpreadConstraint{TopologyKey: key, MaxSkew: skew, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: app("a")}
	for _, f := range change {
		f(&c)
	}
	return func(p *corev1.Pod) { p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, c) }
}

// verdicts asks all filters about all nodes: "n1" or "n1: reason".
func verdicts(e *Env, p *corev1.Pod) string {
	sp := state.NewPod(p)
	filters := Local(sp)
	for _, f := range Global(e, sp) {
		f.Refresh()
		filters = append(filters, f)
	}
	var out []string
	for _, n := range e.Nodes {
		s := n.Name
		for _, f := range filters {
			if !f.Check(n) {
				s += ": " + f.Name() + " " + strings.Join(f.Explain(n), ", ")
				break
			}
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

func TestFilters(t *testing.T) {
	const (
		noFit    = ": NodeResourcesFit "
		tainted  = ": TaintToleration node(s) had untolerated taint(s)"
		cordoned = ": NodeUnschedulable node(s) were unschedulable"
		affinity = ": NodeAffinity node(s) didn't match Pod's node affinity/selector"
		taken    = ": NodePorts node(s) didn't have free ports for the requested pod ports"
		uneven   = ": PodTopologySpread node(s) didn't match pod topology spread constraints"
		lonely   = ": InterPodAffinity node(s) didn't match pod affinity rules"
		crowded  = ": InterPodAffinity node(s) didn't match pod anti-affinity rules"
		repelled = ": InterPodAffinity node(s) didn't satisfy existing pods anti-affinity rules"
	)
	full := []any{node("n1")}
	for i := range 10 {
		full = append(full, pod(fmt.Sprint("p", i), on("n1")))
	}
	required := func(terms ...corev1.NodeSelectorTerm) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: terms}}}
		}
	}
	expr := func(key string, op corev1.NodeSelectorOperator, values ...string) corev1.NodeSelectorTerm {
		return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: op, Values: values}}}
	}
	honor := corev1.NodeInclusionPolicyHonor
	terminating := func(p *corev1.Pod) { now := metav1.Now(); p.DeletionTimestamp = &now }
	for _, c := range []struct {
		name    string
		cluster []any
		pod     *corev1.Pod
		want    string
	}{
		{"resources fit exactly", []any{node("n1"), pod("a", on("n1"), asks("cpu", "3", "memory", "9000"))}, pod("p", asks("cpu", "1", "memory", "1000")), "n1"},
		{"too little of both", []any{node("n1"), pod("a", on("n1"), asks("cpu", "3500m", "memory", "9001"))}, pod("p", asks("cpu", "1", "memory", "1000")), "n1" + noFit + "Insufficient cpu, Insufficient memory"},
		{"no request, no need", []any{node("n1"), pod("a", on("n1"), asks("cpu", "4", "memory", "10000"))}, pod("p"), "n1"},
		{"too many pods", full, pod("p"), "n1" + noFit + "Too many pods"},
		{"extended resource", []any{node("n1"), node("n2", func(n *corev1.Node) { n.Status.Allocatable["example.com/gpu"] = resource.MustParse("2") }), pod("a", on("n2"), asks("example.com/gpu", "1"))}, pod("p", asks("example.com/gpu", "1")), "n1" + noFit + "Insufficient example.com/gpu; n2"},
		{"ephemeral storage", []any{node("n1")}, pod("p", asks("ephemeral-storage", "1")), "n1" + noFit + "Insufficient ephemeral-storage"},
		{"cordoned", []any{node("n1", cordon), node("n2")}, pod("p"), "n1" + cordoned + "; n2"},
		{"cordon tolerated", []any{node("n1", cordon)}, pod("p", tolerate(corev1.Toleration{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule})), "n1"},
		{"taints", []any{node("n1", taint("k=v:NoSchedule")), node("n2", taint("k=v:PreferNoSchedule")), node("n3", taint("k=v:NoExecute"))}, pod("p"), "n1" + tainted + "; n2; n3" + tainted},
		{"taint tolerated by value", []any{node("n1", taint("k=v:NoSchedule")), node("n2", taint("k=w:NoSchedule"))}, pod("p", tolerate(corev1.Toleration{Key: "k", Value: "v"})), "n1; n2" + tainted},
		{"everything tolerated", []any{node("n1", taint("k=v:NoSchedule"), taint("l=w:NoExecute"))}, pod("p", tolerate(corev1.Toleration{Operator: corev1.TolerationOpExists})), "n1"},
		{"one of two taints tolerated", []any{node("n1", taint("k=v:NoSchedule"), taint("l=w:NoExecute"))}, pod("p", tolerate(corev1.Toleration{Key: "k", Operator: corev1.TolerationOpExists})), "n1" + tainted},
		{"node selector", []any{node("n1", zone("a")), node("n2", zone("b")), node("n3")}, pod("p", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelTopologyZone: "a"} }), "n1; n2" + affinity + "; n3" + affinity},
		{"node affinity: any term", []any{node("n1", zone("a")), node("n2", zone("b")), node("n3")}, pod("p", required(expr(corev1.LabelTopologyZone, "In", "a"), expr(corev1.LabelTopologyZone, "DoesNotExist"))), "n1; n2" + affinity + "; n3"},
		{"node affinity by name", []any{node("n1"), node("n2")}, pod("p", required(corev1.NodeSelectorTerm{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: "In", Values: []string{"n2"}}}})), "n1" + affinity + "; n2"},
		{"no terms match nothing", []any{node("n1")}, pod("p", required()), "n1" + affinity},
		{"host port taken", []any{node("n1"), node("n2"), pod("a", on("n1"), hostPort("", 80, "TCP"))}, pod("p", hostPort("10.0.0.1", 80, "TCP")), "n1" + taken + "; n2"},
		{"other protocol or address", []any{node("n1"), pod("a", on("n1"), hostPort("10.0.0.2", 80, "TCP"), hostPort("", 80, "UDP"))}, pod("p", hostPort("10.0.0.1", 80, "TCP")), "n1"},
		{
			"spread over zones",
			[]any{node("n1", zone("a")), node("n2", zone("b")), node("n3"), pod("a", on("n1"), label("app", "a"))},
			pod("p", label("app", "a"), spreadOver(corev1.LabelTopologyZone, 1)), "n1" + uneven + "; n2; n3" + uneven + " (missing required label)",
		},
		{
			"a pod that does not match itself",
			[]any{node("n1", zone("a")), node("n2", zone("b")), pod("a", on("n1"), label("app", "a"))},
			pod("p", spreadOver(corev1.LabelTopologyZone, 1)), "n1; n2",
		},
		{
			"terminating pods and other namespaces do not count",
			[]any{node("n1", zone("a")), node("n2", zone("b")), pod("a", on("n1"), label("app", "a"), terminating), pod("b", in("other"), on("n1"), label("app", "a"))},
			pod("p", label("app", "a"), spreadOver(corev1.LabelTopologyZone, 1)), "n1; n2",
		},
		{
			"too few domains",
			[]any{node("n1", zone("a")), node("n2", zone("b")), pod("a", on("n1"), label("app", "a")), pod("b", on("n2"), label("app", "a"))},
			pod("p", label("app", "a"), spreadOver(corev1.LabelTopologyZone, 1, func(c *corev1.TopologySpreadConstraint) { three := int32(3); c.MinDomains = &three })), "n1" + uneven + "; n2" + uneven,
		},
		{
			"each version by itself",
			[]any{node("n1", zone("a")), node("n2", zone("b")), pod("a", on("n1"), label("app", "a"), label("v", "1")), pod("b", on("n2"), label("app", "a"), label("v", "2"))},
			pod("p", label("app", "a"), label("v", "1"), spreadOver(corev1.LabelTopologyZone, 1, func(c *corev1.TopologySpreadConstraint) { c.MatchLabelKeys = []string{"v"} })), "n1" + uneven + "; n2",
		},
		{
			"tainted nodes are domains unless the policy says otherwise",
			[]any{node("n1", zone("a")), node("n2", zone("b"), taint("k=v:NoSchedule")), pod("a", on("n1"), label("app", "a"))},
			pod("p", label("app", "a"), spreadOver(corev1.LabelTopologyZone, 1)), "n1" + uneven + "; n2" + tainted,
		},
		{
			"tainted nodes are no domains when the policy honours taints",
			[]any{node("n1", zone("a")), node("n2", zone("b"), taint("k=v:NoSchedule")), pod("a", on("n1"), label("app", "a"))},
			pod("p", label("app", "a"), spreadOver(corev1.LabelTopologyZone, 1, func(c *corev1.TopologySpreadConstraint) { c.NodeTaintsPolicy = &honor })), "n1; n2" + tainted,
		},
		{
			"soft constraints refuse nothing",
			[]any{node("n1", zone("a")), node("n2", zone("b")), pod("a", on("n1"), label("app", "a"))},
			pod("p", label("app", "a"), spreadOver(corev1.LabelTopologyZone, 1, func(c *corev1.TopologySpreadConstraint) { c.WhenUnsatisfiable = corev1.ScheduleAnyway })), "n1; n2",
		},
		{
			"affinity",
			[]any{node("n1", zone("a")), node("n2", zone("a")), node("n3", zone("b")), node("n4"), pod("a", on("n1"), label("app", "db"))},
			pod("p", near(corev1.LabelTopologyZone, "db")), "n1; n2; n3" + lonely + "; n4" + lonely,
		},
		{"the first of its kind", []any{node("n1", zone("a")), node("n2")}, pod("p", label("app", "a"), near(corev1.LabelTopologyZone, "a")), "n1; n2" + lonely},
		{"no pod to be near", []any{node("n1", zone("a"))}, pod("p", near(corev1.LabelTopologyZone, "a")), "n1" + lonely},
		{
			"affinity to all at once",
			[]any{node("n1", zone("a")), pod("a", on("n1"), label("app", "db"))},
			pod("p", near(corev1.LabelTopologyZone, "db"), near(corev1.LabelTopologyZone, "cache")), "n1" + lonely,
		},
		{
			"affinity to another namespace",
			[]any{node("n1", zone("a")), node("n2", zone("b")), pod("a", in("other"), on("n1"), label("app", "db"))},
			pod("p", near(corev1.LabelTopologyZone, "db", func(t *corev1.PodAffinityTerm) {
				t.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": "y"}}
			})), "n1; n2" + lonely,
		},
		{
			"anti-affinity",
			[]any{node("n1", zone("a")), node("n2", zone("a")), node("n3", zone("b")), node("n4"), pod("a", on("n1"), label("app", "a"))},
			pod("p", label("app", "b"), apart(corev1.LabelTopologyZone, "a")), "n1" + crowded + "; n2" + crowded + "; n3; n4",
		},
		{
			"anti-affinity of those there",
			[]any{node("n1", zone("a")), node("n2", zone("a")), node("n3", zone("b")), pod("a", on("n1"), label("app", "a"), apart(corev1.LabelTopologyZone, "b"))},
			pod("p", label("app", "b")), "n1" + repelled + "; n2" + repelled + "; n3",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := verdicts(env(c.cluster...), c.pod); got != c.want {
				t.Errorf("\n got %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestScores(t *testing.T) {
	e := env(node("n1"), node("n2", taint("k=v:PreferNoSchedule"), taint("l=v:PreferNoSchedule"), zone("a")),
		pod("a", on("n1"), asks("cpu", "1", "memory", "2500")), pod("b", on("n2"), asks("cpu", "3")))
	p := state.NewPod(pod("p", asks("cpu", "1", "memory", "5000"), func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{
			{Weight: 7, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelTopologyZone, Operator: "Exists"}}}},
		}}}
	}, tolerate(corev1.Toleration{Key: "k", Operator: corev1.TolerationOpExists})))
	small := state.NewPod(pod("q"))
	for _, c := range []struct {
		name   string
		score  func(n *state.Node) int64
		n1, n2 int64
	}{
		// n1 has 2 of 4 cores and 7,500 of 10,000 bytes then: (50 + 25) / 2. n2 has 4
		// of 4, and 200 MiB assumed for a pod that asks for no memory: more than it has.
		{"LeastAllocated", func(n *state.Node) int64 { return LeastAllocated(p, n) }, 37, 0},
		// n1: from 0.25/0.25 (score 100) to 0.5/0.75 (87): 50 + (50-13)/2. n2: from
		// 0.75/0 (62) to 1/0.5 (75): 50 + (50+13)/2.
		{"BalancedAllocation", func(n *state.Node) int64 { return BalancedAllocation(p, n) }, 68, 81},
		{"BalancedAllocation of a pod without requests", func(n *state.Node) int64 { return BalancedAllocation(small, n) }, 0, 0},
		{"AvoidedTaints", func(n *state.Node) int64 { return AvoidedTaints(p, n) }, 0, 1},
		{"PreferredNodes", PreferredNodes(p), 0, 7},
	} {
		if a, b := c.score(e.Node("n1")), c.score(e.Node("n2")); a != c.n1 || b != c.n2 {
			t.Errorf("%s: %d and %d, want %d and %d", c.name, a, b, c.n1, c.n2)
		}
	}
	if PreferredNodes(small) != nil {
		t.Error("a pod without preferences has preferred nodes")
	}
	for _, c := range []struct {
		raw, most int64
		reverse   bool
		want      int64
	}{{0, 0, false, 0}, {0, 0, true, 100}, {3, 6, false, 50}, {6, 6, false, 100}, {6, 6, true, 0}, {1, 3, true, 67}} {
		if got := Normalize(c.raw, c.most, c.reverse); got != c.want {
			t.Errorf("Normalize(%d, %d, %v) = %d, want %d", c.raw, c.most, c.reverse, got, c.want)
		}
	}
}

func TestImageLocality(t *testing.T) {
	image := func(name string, mb int64) func(*corev1.Node) {
		return func(n *corev1.Node) {
			n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{name}, SizeBytes: mb << 20})
		}
	}
	e := env(node("n1", image("app:latest", 500)), node("n2", image("app:latest", 500), image("side:1", 4000)), node("n3", image("app:2", 900)), node("n4"))
	p := state.NewPod(pod("p", func(p *corev1.Pod) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Image: "side:1"})
	}))
	f := ImageLocality(e, p)
	// Half of the nodes have app:latest, so 250 MiB of it count; a quarter has
	// side:1: 1,000 MiB. The range is 23 to 2,000 MiB.
	for name, want := range map[string]int64{"n1": 100 * (250 - 23) / 1977, "n2": 100 * (1250 - 23) / 1977, "n3": 0, "n4": 0} {
		if got := f(e.Node(name)); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}

func scores(e *Env, s interface {
	Refresh()
	Scores([]*state.Node, []int64)
}) []int64 {
	s.Refresh()
	out := make([]int64, len(e.Nodes))
	s.Scores(e.Nodes, out)
	return out
}

func TestSpreadScores(t *testing.T) {
	a := label("app", "a")
	soft := func(c *corev1.TopologySpreadConstraint) { c.WhenUnsatisfiable = corev1.ScheduleAnyway }
	e := env(node("n1", zone("x")), node("n2", zone("x")), node("n3", zone("y")), node("n4"),
		pod("1", a, on("n1")), pod("2", a, on("n1")), pod("3", a, on("n3")))
	// By zone: x has 2, y has 1; n4 is in none and gets nothing. The raw scores are
	// 2 ln 4 = 2.77 and 1.39, rounded 3 and 1: 100*(3+1-raw)/3.
	p := state.NewPod(pod("p", a, spreadOver(corev1.LabelTopologyZone, 1, soft)))
	if got := scores(e, NewSpread(e, p)); !slices.Equal(got, []int64{33, 33, 100, 0}) {
		t.Errorf("by zone: %v", got)
	}
	// The defaults, for a pod that belongs to a Service: by host (maxSkew 3, ln 6 a
	// pod) and by zone (maxSkew 5, three values with none: ln 5 a pod).
	e.DefaultSelector = func(*state.Pod) labels.Selector { return labels.SelectorFromSet(labels.Set{"app": "a"}) }
	p = state.NewPod(pod("p", a))
	s := NewSpread(e, p)
	// n1: 2*1.79+2 + 2*1.61+4 = 12.8 → 13; n2: 2 + 7.22 → 9; n3: 3.79 + 5.61 → 9;
	// n4: 2, as it has no zone.
	want := []int64{100 * (13 + 2 - 13) / 13, 100 * (13 + 2 - 9) / 13, 100 * (13 + 2 - 9) / 13, 100}
	if got := scores(e, s); !slices.Equal(got, want) {
		t.Errorf("defaults: %v, want %v", got, want)
	}
	// It follows what happens.
	at := e.Position()
	e.SetPod(state.NewPod(pod("4", a, on("n4"))))
	e.RemovePod(state.Key{Namespace: "default", Name: "1"})
	changes, _ := e.Since(at)
	for i := range changes {
		if !s.Apply(&changes[i]) {
			t.Fatal("must be computed again")
		}
	}
	if got, fresh := scores(e, s), scores(e, NewSpread(e, p)); !slices.Equal(got, fresh) {
		t.Errorf("by increments %v, from scratch %v", got, fresh)
	}
	e.DefaultSelector = func(*state.Pod) labels.Selector { return labels.Everything() }
	if NewSpread(e, p) != nil {
		t.Error("a pod that belongs to nothing is spread")
	}
}

func TestAffinityScores(t *testing.T) {
	prefer := func(weight int32, anti bool, key, v string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			if p.Spec.Affinity == nil {
				p.Spec.Affinity = &corev1.Affinity{}
			}
			t := []corev1.WeightedPodAffinityTerm{{Weight: weight, PodAffinityTerm: corev1.PodAffinityTerm{TopologyKey: key, LabelSelector: app(v)}}}
			if anti {
				p.Spec.Affinity.PodAntiAffinity = &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: t}
			} else {
				p.Spec.Affinity.PodAffinity = &corev1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: t}
			}
		}
	}
	cluster := []any{node("n1", zone("x")), node("n2", zone("x")), node("n3", zone("y")), node("n4"),
		pod("1", label("app", "db"), on("n1")), pod("2", label("app", "db"), on("n3")), pod("3", label("app", "db"), on("n3"))}
	for _, c := range []struct {
		name string
		more []any
		pod  *corev1.Pod
		want []int64
	}{
		{"own preference", nil, pod("p", prefer(5, false, corev1.LabelTopologyZone, "db")), []int64{50, 50, 100, 0}},
		{"own aversion", nil, pod("p", prefer(5, true, corev1.LabelTopologyZone, "db")), []int64{50, 50, 0, 100}},
		{"others' preference", []any{pod("4", on("n2"), prefer(3, false, corev1.LabelHostname, "web"))}, pod("p", label("app", "web")), []int64{0, 100, 0, 0}},
		{"others' aversion", []any{pod("4", on("n2"), prefer(3, true, corev1.LabelTopologyZone, "web"))}, pod("p", label("app", "web")), []int64{0, 0, 100, 100}},
		{"others' requirement", []any{pod("4", on("n2"), near(corev1.LabelTopologyZone, "web"))}, pod("p", label("app", "web")), []int64{100, 100, 0, 0}},
		{"nothing", nil, pod("p"), []int64{0, 0, 0, 0}},
	} {
		e := env(append(slices.Clone(cluster), c.more...)...)
		s := NewAffinity(e, state.NewPod(c.pod))
		if got := scores(e, s); !slices.Equal(got, c.want) || s.Matters() != (c.name != "nothing") {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestHelps(t *testing.T) {
	e := env(node("n1"), node("tainted", taint("k=v:NoSchedule")))
	n1, tainted := e.Node("n1"), e.Node("tainted")
	sp := func(change ...func(*corev1.Pod)) *state.Pod { return state.NewPod(pod("p", change...)) }
	other := func(change ...func(*corev1.Pod)) *state.Pod {
		return state.NewPod(pod("o", append(change, on("n1"))...))
	}
	for _, c := range []struct {
		name   string
		plugin string
		pod    *state.Pod
		ev     Event
		want   bool
	}{
		{"a node without the taint", TaintToleration, sp(), Event{Node: n1, What: state.NodeTaints}, true},
		{"a node with it", TaintToleration, sp(), Event{Node: tainted, What: state.NodeAdded}, false},
		{"another image", TaintToleration, sp(), Event{Node: n1, What: state.NodeImages}, false},
		{"a node that is large enough", NodeResourcesFit, sp(asks("cpu", "4")), Event{Node: n1, What: state.NodeAdded}, true},
		{"a node that is not", NodeResourcesFit, sp(asks("cpu", "5")), Event{Node: n1, What: state.NodeAdded}, false},
		{"a pod went", NodeResourcesFit, sp(asks("cpu", "4")), Event{Went: other()}, true},
		{"a pod came", NodeResourcesFit, sp(asks("cpu", "4")), Event{Came: other()}, false},
		{"a pod with a port went", NodePorts, sp(hostPort("", 80, "TCP")), Event{Went: other(hostPort("", 80, "TCP"))}, true},
		{"a pod without went", NodePorts, sp(hostPort("", 80, "TCP")), Event{Went: other()}, false},
		{"a matching pod came", PodTopologySpread, sp(spreadOver("zone", 1)), Event{Came: other(label("app", "a"))}, true},
		{"another came", PodTopologySpread, sp(spreadOver("zone", 1)), Event{Came: other(label("app", "b"))}, false},
		{"one to be near came", InterPodAffinity, sp(near("zone", "a")), Event{Came: other(label("app", "a"))}, true},
		{"one to be near went", InterPodAffinity, sp(apart("zone", "a")), Event{Came: other(label("app", "a"))}, false},
		{"one to be apart from went", InterPodAffinity, sp(apart("zone", "a")), Event{Went: other(label("app", "a"))}, true},
		{"one that repelled went", InterPodAffinity, sp(label("app", "a")), Event{Went: other(apart("zone", "a"))}, true},
		{"a claim changed", VolumeBinding, sp(), Event{Volumes: true}, true},
		{"a claim changed", NodeResourcesFit, sp(), Event{Volumes: true}, false},
		{"a cordon was lifted", NodeUnschedulable, sp(), Event{Node: n1, What: state.NodeTaints}, true},
		{"a label came", NodeAffinity, sp(func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "n1"} }), Event{Node: n1, What: state.NodeLabels}, true},
		{"another label came", NodeAffinity, sp(func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: "n2"} }), Event{Node: n1, What: state.NodeLabels}, false},
	} {
		if got := Helps(e, c.pod, []string{c.plugin}, &c.ev); got != c.want {
			t.Errorf("%s, %s: %v, want %v", c.plugin, c.name, got, c.want)
		}
	}
}

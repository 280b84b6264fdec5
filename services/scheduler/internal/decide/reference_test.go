package decide

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/klog/v2"

	"keelson.dev/services/scheduler/internal/plugin"
	"keelson.dev/services/scheduler/internal/state"
)

// world is a cluster as plain objects. Its feasible is the plain reference of
// what the engine must find: slow, obvious, and from the objects alone.
type world struct {
	nodes      map[string]*corev1.Node
	pods       map[string]*corev1.Pod // on nodes
	namespaces map[string]labels.Set
	nominated  []*corev1.Pod // as if on the nodes that they are nominated for
}

func (w *world) feasible(p *corev1.Pod) []string {
	var out []string
	for name, n := range w.nodes {
		if w.fits(p, n) && w.tolerates(p, n) && w.selects(p, n) && w.ports(p, n) && w.spreads(p, n) && w.affine(p, n) {
			out = append(out, name)
		}
	}
	sort.Strings(out)
	return out
}

func (w *world) on(n *corev1.Node) []*corev1.Pod {
	var out []*corev1.Pod
	for _, p := range w.pods {
		if p.Spec.NodeName == n.Name {
			out = append(out, p)
		}
	}
	return out
}

func request(p *corev1.Pod, name corev1.ResourceName) int64 {
	var sum int64
	for _, c := range p.Spec.Containers {
		q := c.Resources.Requests[name]
		sum += q.MilliValue()
	}
	return sum
}

func (w *world) fits(p *corev1.Pod, n *corev1.Node) bool {
	pods := w.on(n)
	count := n.Status.Allocatable[corev1.ResourcePods]
	if int64(len(pods))+1 > count.Value() {
		return false
	}
	for _, name := range []corev1.ResourceName{"cpu", "memory", "example.com/gpu"} {
		want := request(p, name)
		if want == 0 {
			continue
		}
		q := n.Status.Allocatable[name]
		left := q.MilliValue()
		for _, other := range pods {
			left -= request(other, name)
		}
		if want > left {
			return false
		}
	}
	return true
}

func (w *world) tolerates(p *corev1.Pod, n *corev1.Node) bool {
	all := slices.Clone(n.Spec.Taints)
	if n.Spec.Unschedulable {
		all = append(all, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
	}
	for _, taint := range all {
		if taint.Effect == corev1.TaintEffectPreferNoSchedule {
			continue
		}
		ok := false
		for _, t := range p.Spec.Tolerations {
			ok = ok || t.ToleratesTaint(klog.Background(), &taint, false)
		}
		if !ok {
			return false
		}
	}
	return true
}

func (w *world) selects(p *corev1.Pod, n *corev1.Node) bool {
	for k, v := range p.Spec.NodeSelector {
		if have, ok := n.Labels[k]; !ok || have != v {
			return false
		}
	}
	a := p.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return true
	}
	for _, t := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		ok := len(t.MatchExpressions)+len(t.MatchFields) > 0
		for _, e := range t.MatchExpressions {
			have, there := n.Labels[e.Key]
			switch e.Operator {
			case corev1.NodeSelectorOpIn:
				ok = ok && there && slices.Contains(e.Values, have)
			case corev1.NodeSelectorOpNotIn:
				ok = ok && (!there || !slices.Contains(e.Values, have))
			case corev1.NodeSelectorOpExists:
				ok = ok && there
			}
		}
		for _, e := range t.MatchFields {
			ok = ok && slices.Contains(e.Values, n.Name)
		}
		if ok {
			return true
		}
	}
	return false
}

func (w *world) ports(p *corev1.Pod, n *corev1.Node) bool {
	for _, c := range p.Spec.Containers {
		for _, want := range c.Ports {
			for _, other := range w.on(n) {
				for _, oc := range other.Spec.Containers {
					for _, have := range oc.Ports {
						if want.HostPort == have.HostPort && want.Protocol == have.Protocol &&
							(want.HostIP == have.HostIP || want.HostIP == "" || have.HostIP == "") {
							return false
						}
					}
				}
			}
		}
	}
	return true
}

func (w *world) spreads(p *corev1.Pod, n *corev1.Node) bool {
	var hard []corev1.TopologySpreadConstraint
	for _, c := range p.Spec.TopologySpreadConstraints {
		if c.WhenUnsatisfiable == corev1.DoNotSchedule {
			hard = append(hard, c)
		}
	}
	for _, c := range hard {
		here, ok := n.Labels[c.TopologyKey]
		if !ok {
			return false
		}
		matches := func(other *corev1.Pod) bool {
			sel, err := metav1.LabelSelectorAsSelector(c.LabelSelector)
			if err != nil || !sel.Matches(labels.Set(other.Labels)) {
				return false
			}
			for _, key := range c.MatchLabelKeys {
				if v, ok := p.Labels[key]; ok && other.Labels[key] != v {
					return false
				}
			}
			return true
		}
		counts := map[string]int{}
		for _, m := range w.nodes {
			eligible := true
			for _, d := range hard {
				_, ok := m.Labels[d.TopologyKey]
				eligible = eligible && ok
			}
			if c.NodeAffinityPolicy == nil || *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor {
				eligible = eligible && w.selects(p, m)
			}
			if c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor {
				uncordoned := m.DeepCopy()
				uncordoned.Spec.Unschedulable = false
				eligible = eligible && w.tolerates(p, uncordoned)
			}
			if !eligible {
				continue
			}
			counts[m.Labels[c.TopologyKey]] += 0
			for _, other := range w.on(m) {
				if other.Namespace == p.Namespace && other.DeletionTimestamp == nil && !emptySelector(c, p) && matches(other) {
					counts[m.Labels[c.TopologyKey]]++
				}
			}
		}
		least := 1 << 30
		for _, n := range counts {
			least = min(least, n)
		}
		domains := int32(1)
		if c.MinDomains != nil {
			domains = *c.MinDomains
		}
		if int32(len(counts)) < domains {
			least = 0
		}
		self := 0
		if matches(p) {
			self = 1
		}
		if counts[here]+self-least > int(c.MaxSkew) {
			return false
		}
	}
	return true
}

// emptySelector reports whether Kubernetes counts nothing for a selector, though
// they match everything.
func emptySelector(c corev1.TopologySpreadConstraint, p *corev1.Pod) bool {
	for _, key := range c.MatchLabelKeys {
		if _, ok := p.Labels[key]; ok {
			return false
		}
	}
	return c.LabelSelector != nil && len(c.LabelSelector.MatchLabels)+len(c.LabelSelector.MatchExpressions) == 0
}

// means reports whether a term of owner means other.
func (w *world) means(owner *corev1.Pod, t *corev1.PodAffinityTerm, other *corev1.Pod) bool {
	in := slices.Contains(t.Namespaces, other.Namespace)
	if t.NamespaceSelector == nil && len(t.Namespaces) == 0 {
		in = owner.Namespace == other.Namespace
	}
	if t.NamespaceSelector != nil {
		sel, err := metav1.LabelSelectorAsSelector(t.NamespaceSelector)
		in = in || (err == nil && sel.Matches(w.namespaces[other.Namespace]))
	}
	sel, err := metav1.LabelSelectorAsSelector(t.LabelSelector)
	return in && err == nil && sel.Matches(labels.Set(other.Labels))
}

// near reports whether a node is in the domain of the node of a pod.
func (w *world) near(n *corev1.Node, other *corev1.Pod, key string) bool {
	m := w.nodes[other.Spec.NodeName]
	if m == nil {
		return false
	}
	a, ok := n.Labels[key]
	b, ok2 := m.Labels[key]
	return ok && ok2 && a == b
}

func (w *world) affine(p *corev1.Pod, n *corev1.Node) bool {
	var own, anti []corev1.PodAffinityTerm
	if a := p.Spec.Affinity; a != nil {
		if a.PodAffinity != nil {
			own = a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution
		}
		if a.PodAntiAffinity != nil {
			anti = a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution
		}
	}
	all := func(q *corev1.Pod) bool {
		for i := range own {
			if !w.means(p, &own[i], q) {
				return false
			}
		}
		return true
	}
	there, anywhere := true, false
	for i := range own {
		if _, ok := n.Labels[own[i].TopologyKey]; !ok {
			return false
		}
		found := false
		for _, q := range w.pods {
			if !all(q) {
				continue
			}
			if m := w.nodes[q.Spec.NodeName]; m != nil {
				_, has := m.Labels[own[i].TopologyKey]
				anywhere = anywhere || has
			}
			found = found || w.near(n, q, own[i].TopologyKey)
		}
		there = there && found
	}
	if !there && (anywhere || !all(p)) {
		return false
	}
	for _, q := range w.pods {
		for i := range anti {
			if w.means(p, &anti[i], q) && w.near(n, q, anti[i].TopologyKey) {
				return false
			}
		}
		if a := q.Spec.Affinity; a != nil && a.PodAntiAffinity != nil {
			for i := range a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
				t := &a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution[i]
				if w.means(q, t, p) && w.near(n, q, t.TopologyKey) {
					return false
				}
			}
		}
	}
	return true
}

// dice makes random objects from few values, so that rules meet often.
type dice struct{ *rand.Rand }

func (d dice) chance(percent int) bool { return d.IntN(100) < percent }

func (d dice) node(i int) *corev1.Node {
	n := testNode(i, 3)
	if d.chance(15) {
		delete(n.Labels, corev1.LabelTopologyZone)
	}
	if d.chance(50) {
		n.Labels["disk"] = []string{"ssd", "hdd"}[d.IntN(2)]
	}
	n.Status.Allocatable["cpu"] = resource.MustParse(fmt.Sprintf("%dm", 500+500*d.IntN(4)))
	n.Status.Allocatable["pods"] = *resource.NewQuantity(int64(2+d.IntN(6)), resource.DecimalSI)
	if d.chance(30) {
		n.Status.Allocatable["example.com/gpu"] = *resource.NewQuantity(int64(d.IntN(3)), resource.DecimalSI)
	}
	if d.chance(15) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "dedicated", Value: []string{"a", "b"}[d.IntN(2)], Effect: []corev1.TaintEffect{"NoSchedule", "NoExecute", "PreferNoSchedule"}[d.IntN(3)]})
	}
	n.Spec.Unschedulable = d.chance(8)
	return n
}

func (d dice) selector() *metav1.LabelSelector {
	switch d.IntN(8) {
	case 0:
		return &metav1.LabelSelector{}
	case 1:
		return nil
	case 2:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"a"}}}}
	}
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": []string{"a", "b"}[d.IntN(2)]}}
}

func (d dice) key() string {
	return []string{corev1.LabelHostname, corev1.LabelTopologyZone, "disk"}[d.IntN(3)]
}

func (d dice) term() corev1.PodAffinityTerm {
	t := corev1.PodAffinityTerm{TopologyKey: d.key(), LabelSelector: d.selector()}
	if d.chance(20) {
		t.Namespaces = []string{"ns1"}
	}
	if d.chance(40) {
		t.NamespaceSelector = &metav1.LabelSelector{}
		if d.chance(70) {
			t.NamespaceSelector.MatchLabels = map[string]string{"team": "x"}
		}
	}
	return t
}

func (d dice) pod(i int) *corev1.Pod {
	p := testPod(i)
	p.Namespace = fmt.Sprint("ns", d.IntN(2))
	p.Labels = map[string]string{"app": []string{"a", "b", "c"}[d.IntN(3)]}
	if d.chance(30) {
		p.Labels["version"] = fmt.Sprint(d.IntN(2))
	}
	reqs := corev1.ResourceList{}
	if d.chance(80) {
		reqs["cpu"] = resource.MustParse(fmt.Sprintf("%dm", 100+100*d.IntN(4)))
	}
	if d.chance(10) {
		reqs["example.com/gpu"] = resource.MustParse("1")
	}
	p.Spec.Containers[0].Resources.Requests = reqs
	if d.chance(15) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{HostPort: int32(80 + d.IntN(2)), Protocol: "TCP", HostIP: []string{"", "10.0.0.1", "10.0.0.2"}[d.IntN(3)]}}
	}
	if d.chance(15) {
		p.Spec.NodeSelector = map[string]string{"disk": "ssd"}
	}
	if d.chance(30) {
		p.Spec.Tolerations = []corev1.Toleration{{Key: "dedicated", Operator: corev1.TolerationOpEqual, Value: "a"}, {Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule}}[:1+d.IntN(2)]
	}
	a := &corev1.Affinity{}
	if d.chance(20) {
		e := corev1.NodeSelectorRequirement{Key: "disk", Operator: []corev1.NodeSelectorOperator{"In", "NotIn"}[d.IntN(2)], Values: []string{"ssd"}}
		a.NodeAffinity = &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{e}}}}}
	}
	if d.chance(25) {
		a.PodAffinity = &corev1.PodAffinity{}
		for range 1 + d.IntN(2) {
			a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution = append(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution, d.term())
		}
	}
	if d.chance(20) {
		a.PodAntiAffinity = &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{d.term()}}
	}
	p.Spec.Affinity = a
	if d.chance(35) {
		for range 1 + d.IntN(2) {
			c := corev1.TopologySpreadConstraint{
				MaxSkew: int32(1 + d.IntN(2)), TopologyKey: d.key(), LabelSelector: d.selector(),
				WhenUnsatisfiable: []corev1.UnsatisfiableConstraintAction{corev1.DoNotSchedule, corev1.DoNotSchedule, corev1.ScheduleAnyway}[d.IntN(3)],
			}
			if d.chance(20) && c.WhenUnsatisfiable == corev1.DoNotSchedule {
				m := int32(1 + d.IntN(5))
				c.MinDomains = &m
			}
			if d.chance(30) && c.LabelSelector != nil {
				c.MatchLabelKeys = []string{"version"}
			}
			policies := []corev1.NodeInclusionPolicy{corev1.NodeInclusionPolicyHonor, corev1.NodeInclusionPolicyIgnore}
			if d.chance(30) {
				c.NodeAffinityPolicy = &policies[d.IntN(2)]
			}
			if d.chance(30) {
				c.NodeTaintsPolicy = &policies[d.IntN(2)]
			}
			p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, c)
		}
	}
	return p
}

// TestTheEngineFindsWhatTheReferenceFinds runs random clusters through random
// changes; after each, the engine and the reference must find the same nodes for
// pods seen before (whose evaluations are kept up to date by increments) and for
// new ones.
func TestTheEngineFindsWhatTheReferenceFinds(t *testing.T) {
	seeds := 150
	if testing.Short() {
		seeds = 20
	}
	for seed := range seeds {
		d := dice{rand.New(rand.NewPCG(uint64(seed), 17))}
		w := &world{nodes: map[string]*corev1.Node{}, pods: map[string]*corev1.Pod{}, namespaces: map[string]labels.Set{}}
		env := newEnv()
		e := New(env)
		for ns := range 2 {
			name := fmt.Sprint("ns", ns)
			w.namespaces[name] = labels.Set{}
			env.SetNamespace(name, w.namespaces[name])
		}
		var templates []*corev1.Pod
		for i := range 8 {
			templates = append(templates, d.pod(i))
		}
		for i := range 60 {
			what := change(d, w, env, i)
			for range 2 {
				p := templates[d.IntN(len(templates))].DeepCopy()
				if d.chance(20) {
					p = d.pod(100 + i)
				}
				p.Name = fmt.Sprintf("pod-%d-%d", i, d.IntN(1000))
				want := w.feasible(p)
				v := e.Decide(state.NewPod(p))
				var got []string
				if len(w.nodes) > 0 {
					for _, n := range e.feasible {
						got = append(got, n.Name)
					}
				}
				sort.Strings(got)
				if !slices.Equal(got, want) {
					t.Fatalf("seed %d step %d (%s): pod %+v\n%s\ngot  %v\nwant %v\n%s", seed, i, what, p.Labels, p.Spec.String(), got, want, w.describe())
				}
				if (v.Node == nil) != (len(want) == 0) || (v.Node != nil && !slices.Contains(want, v.Node.Name)) {
					t.Fatalf("seed %d step %d: decided for %v of %v", seed, i, v.Node, want)
				}
				if v.Node == nil && len(w.nodes) > 0 {
					if want := explained(env, p); v.Message != want {
						t.Fatalf("seed %d step %d (%s): explained as\n%s\nwant\n%s", seed, i, what, v.Message, want)
					}
				}
				if v.Node != nil {
					p.Spec.NodeName = v.Node.Name
					w.pods[p.Namespace+"/"+p.Name] = p
					env.SetPod(state.NewPod(p))
				}
			}
		}
	}
}

// explained asks fresh plugins about one node after the other.
func explained(env *plugin.Env, p *corev1.Pod) string {
	sp := state.NewPod(p)
	filters := plugin.Local(sp)
	for _, f := range plugin.Global(env, sp) {
		f.Refresh()
		filters = append(filters, f)
	}
	var all tally
	for _, n := range env.Nodes {
		if n != nil {
			all.add(refuses(filters, n), n)
		}
	}
	return all.refusal(env.NodeCount()).message
}

// change does one random thing to both pictures.
func change(d dice, w *world, env interface {
	SetNode(*corev1.Node) state.NodeChange
	RemoveNode(string)
	SetPod(*state.Pod) *state.Pod
	RemovePod(state.Key) *state.Pod
	SetNamespace(string, labels.Set) bool
}, i int,
) string {
	names := make([]string, 0, len(w.pods))
	for name := range w.pods {
		names = append(names, name)
	}
	sort.Strings(names)
	switch k := d.IntN(10); {
	case i < 6 || k < 2:
		n := d.node(d.IntN(10))
		w.nodes[n.Name] = n
		env.SetNode(n)
		return "node " + n.Name
	case k == 2:
		name := testNode(d.IntN(10), 3).Name
		delete(w.nodes, name)
		env.RemoveNode(name)
		return "no node " + name
	case k == 3:
		name := fmt.Sprint("ns", d.IntN(2))
		w.namespaces[name] = labels.Set{"team": []string{"x", "y"}[d.IntN(2)]}
		env.SetNamespace(name, w.namespaces[name])
		return "namespace " + name
	case len(names) == 0:
		return "nothing"
	case k < 7:
		name := names[d.IntN(len(names))]
		p := w.pods[name]
		delete(w.pods, name)
		env.RemovePod(state.Key{Namespace: p.Namespace, Name: p.Name})
		return "no pod " + name
	case k < 9:
		p := w.pods[names[d.IntN(len(names))]].DeepCopy()
		p.Labels["app"] = []string{"a", "b", "c"}[d.IntN(3)]
		w.pods[p.Namespace+"/"+p.Name] = p
		env.SetPod(state.NewPod(p))
		return "relabelled " + p.Name
	default:
		p := w.pods[names[d.IntN(len(names))]].DeepCopy()
		now := metav1.Now()
		p.DeletionTimestamp = &now
		w.pods[p.Namespace+"/"+p.Name] = p
		env.SetPod(state.NewPod(p))
		return "terminating " + p.Name
	}
}

func (w *world) describe() string {
	var b strings.Builder
	for name, n := range w.nodes {
		fmt.Fprintf(&b, "%s %v taints %v unschedulable %v\n", name, n.Labels, n.Spec.Taints, n.Spec.Unschedulable)
	}
	for name, p := range w.pods {
		fmt.Fprintf(&b, "%s on %s %v terminating %v affinity %v\n", name, p.Spec.NodeName, p.Labels, p.DeletionTimestamp != nil, p.Spec.Affinity)
	}
	fmt.Fprint(&b, w.namespaces)
	return b.String()
}

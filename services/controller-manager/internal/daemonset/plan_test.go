package daemonset_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/controller-manager/internal/daemonset"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

const (
	fresh = "new"
	stale = "old"
)

func set() *appsv1.DaemonSet {
	one := intstr.FromInt32(1)
	labels := map[string]string{"app": "agent"}
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "agent", Generation: 2},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}},
			},
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
				Type:          appsv1.RollingUpdateDaemonSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &one},
			},
		},
	}
}

func nodes(names ...string) []*corev1.Node {
	var out []*corev1.Node
	for _, n := range names {
		out = append(out, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n, Labels: map[string]string{"kubernetes.io/hostname": n}}})
	}
	return out
}

func taint(n *corev1.Node, key string, effect corev1.TaintEffect) *corev1.Node {
	n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Effect: effect})
	return n
}

type option func(*corev1.Pod)

func pod(name, node, hash string, opts ...option) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: name, CreationTimestamp: metav1.NewTime(now.Add(-time.Hour)),
			Labels: map[string]string{"app": "agent", appsv1.DefaultDaemonSetUniqueLabelKey: hash},
		},
		Spec: corev1.PodSpec{NodeName: node},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{
			{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))},
		}},
	}
	for _, o := range opts {
		o(p)
	}
	return p
}

func notReady(p *corev1.Pod)         { p.Status.Conditions = nil }
func deleted(p *corev1.Pod)          { t := metav1.NewTime(now); p.DeletionTimestamp = &t }
func phase(v corev1.PodPhase) option { return func(p *corev1.Pod) { p.Status.Phase = v } }
func younger(p *corev1.Pod)          { p.CreationTimestamp = metav1.NewTime(now.Add(-time.Minute)) }
func readyFor(d time.Duration) option {
	return func(p *corev1.Pod) { p.Status.Conditions[0].LastTransitionTime = metav1.NewTime(now.Add(-d)) }
}

func state(n []*corev1.Node, pods ...*corev1.Pod) daemonset.State {
	return daemonset.State{Nodes: n, Pods: pods, Hash: fresh, Now: now, Wait: func(string) time.Duration { return 0 }}
}

func names(pods []*corev1.Pod) []string {
	var out []string
	for _, p := range pods {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return out
}

func TestOnePodPerMatchingNode(t *testing.T) {
	n := nodes("a", "b", "c", "d", "e", "f")
	taint(n[0], corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule) // tolerated by every daemon
	taint(n[1], "dedicated", corev1.TaintEffectNoSchedule)
	taint(n[2], "dedicated", corev1.TaintEffectNoSchedule) // a running pod may stay
	taint(n[3], "dedicated", corev1.TaintEffectNoExecute)
	n[4].Labels["skip"] = "yes"
	ds := set()
	ds.Spec.Template.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "skip", Operator: corev1.NodeSelectorOpDoesNotExist}},
		}}},
	}}
	plan := daemonset.Plan(ds, state(n,
		pod("c", "c", fresh), pod("d", "d", fresh), pod("e", "e", fresh), pod("gone", "gone", fresh), pod("f", "f", fresh, deleted)))
	if want := []string{"a"}; !slices.Equal(plan.Create, want) {
		t.Errorf("created pods on nodes %v, want %v", plan.Create, want)
	}
	if got, want := names(plan.Delete), []string{"d", "e", "gone"}; !slices.Equal(got, want) {
		t.Errorf("deleted pods %v, want %v", got, want)
	}
	s := plan.Status
	if s.DesiredNumberScheduled != 2 || s.CurrentNumberScheduled != 1 || s.NumberMisscheduled != 4 || s.NumberReady != 0 || s.NumberUnavailable != 2 {
		t.Errorf("status %+v", s)
	}
}

func TestFailedPodsAreReplacedAfterBackoff(t *testing.T) {
	st := state(nodes("a", "b"), pod("a", "a", fresh, phase(corev1.PodFailed)), pod("b", "b", fresh, phase(corev1.PodFailed)))
	st.Wait = func(node string) time.Duration {
		if node == "b" {
			return 4 * time.Second
		}
		return 0
	}
	plan := daemonset.Plan(set(), st)
	if got := names(plan.Delete); !slices.Equal(got, []string{"a"}) || !slices.Equal(plan.Failed, []string{"a"}) {
		t.Errorf("deleted pods %v and counted failures on %v, want only a", got, plan.Failed)
	}
	if plan.RequeueAfter != 4*time.Second {
		t.Errorf("requeued after %v, want 4s", plan.RequeueAfter)
	}
	if len(plan.Create) != 0 {
		t.Error("a pod was created before the failed one was gone")
	}
}

func TestSurplusPodsAreDeletedNewestFirst(t *testing.T) {
	plan := daemonset.Plan(set(), state(nodes("a"), pod("young", "a", fresh, younger), pod("old", "a", fresh)))
	if got := names(plan.Delete); !slices.Equal(got, []string{"young"}) {
		t.Errorf("deleted pods %v, want young", got)
	}
}

func TestUnboundPodCountsForItsTargetNode(t *testing.T) {
	p := pod("a", "", fresh, notReady, phase(corev1.PodPending))
	p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
		RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"a"}}},
		}}},
	}}
	plan := daemonset.Plan(set(), state(nodes("a"), p))
	if len(plan.Create)+len(plan.Delete) != 0 || plan.Status.CurrentNumberScheduled != 1 {
		t.Errorf("plan %+v", plan)
	}
}

func TestRollout(t *testing.T) {
	percent := func(s string) *intstr.IntOrString { v := intstr.Parse(s); return &v }
	type want struct{ remove, create []string }
	for name, c := range map[string]struct {
		rolling  appsv1.RollingUpdateDaemonSet
		minReady int32
		pods     []*corev1.Pod
		want     want
	}{
		"one at a time": {
			pods: []*corev1.Pod{pod("a", "a", stale), pod("b", "b", stale), pod("c", "c", stale), pod("d", "d", stale)},
			want: want{remove: []string{"a"}},
		},
		"half at a time": {
			rolling: appsv1.RollingUpdateDaemonSet{MaxUnavailable: percent("50%")},
			pods:    []*corev1.Pod{pod("a", "a", stale), pod("b", "b", stale), pod("c", "c", stale), pod("d", "d", stale)},
			want:    want{remove: []string{"a", "b"}},
		},
		"waits until the new pod is ready": {
			pods: []*corev1.Pod{pod("a", "a", fresh, notReady), pod("b", "b", stale), pod("c", "c", stale), pod("d", "d", stale)},
		},
		"waits until the new pod is available": {
			minReady: 30,
			pods:     []*corev1.Pod{pod("a", "a", fresh, readyFor(time.Second)), pod("b", "b", stale), pod("c", "c", stale), pod("d", "d", stale)},
		},
		"waits for a terminating pod": {
			pods: []*corev1.Pod{pod("a", "a", stale, deleted), pod("b", "b", stale), pod("c", "c", stale), pod("d", "d", stale)},
		},
		"replaces all unavailable pods at once": {
			pods: []*corev1.Pod{pod("a", "a", stale, notReady), pod("b", "b", stale, notReady), pod("c", "c", stale), pod("d", "d", stale)},
			want: want{remove: []string{"a", "b"}},
		},
		"surge": {
			rolling: appsv1.RollingUpdateDaemonSet{MaxSurge: percent("2"), MaxUnavailable: percent("0")},
			pods:    []*corev1.Pod{pod("a", "a", stale), pod("b", "b", stale), pod("c", "c", stale), pod("d", "d", stale)},
			want:    want{create: []string{"a", "b"}},
		},
		"surge deletes the old pod when the new one is available": {
			rolling: appsv1.RollingUpdateDaemonSet{MaxSurge: percent("1"), MaxUnavailable: percent("0")},
			pods:    []*corev1.Pod{pod("a", "a", stale), pod("a2", "a", fresh, younger), pod("b", "b", stale), pod("c", "c", stale), pod("d", "d", stale)},
			want:    want{remove: []string{"a"}, create: []string{"b"}},
		},
		"surge waits until the new pod is ready": {
			rolling: appsv1.RollingUpdateDaemonSet{MaxSurge: percent("1"), MaxUnavailable: percent("0")},
			pods:    []*corev1.Pod{pod("a", "a", stale), pod("a2", "a", fresh, younger, notReady), pod("b", "b", stale), pod("c", "c", stale), pod("d", "d", stale)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			ds := set()
			ds.Spec.MinReadySeconds = c.minReady
			if c.rolling != (appsv1.RollingUpdateDaemonSet{}) {
				ds.Spec.UpdateStrategy.RollingUpdate = &c.rolling
			}
			plan := daemonset.Plan(ds, state(nodes("a", "b", "c", "d"), c.pods...))
			if got := names(plan.Delete); !slices.Equal(got, c.want.remove) {
				t.Errorf("deleted pods %v, want %v", got, c.want.remove)
			}
			if !slices.Equal(plan.Create, c.want.create) {
				t.Errorf("created pods on nodes %v, want %v", plan.Create, c.want.create)
			}
		})
	}
	t.Run("OnDelete", func(t *testing.T) {
		ds := set()
		ds.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}
		if plan := daemonset.Plan(ds, state(nodes("a"), pod("a", "a", stale))); len(plan.Delete)+len(plan.Create) != 0 {
			t.Errorf("plan %+v", plan)
		}
	})
	t.Run("failed pods of older templates do not wait for the backoff", func(t *testing.T) {
		st := state(nodes("a"), pod("a", "a", stale, phase(corev1.PodFailed)))
		st.Wait = func(string) time.Duration { return time.Minute }
		if plan := daemonset.Plan(set(), st); !slices.Equal(names(plan.Delete), []string{"a"}) {
			t.Errorf("deleted pods %v, want a", names(plan.Delete))
		}
	})
}

// TestRolloutOnNodesThatTakeNoNewPods has node b with a NoSchedule taint, on which running
// pods may stay. The expectations are those of Kubernetes' controller.
func TestRolloutOnNodesThatTakeNoNewPods(t *testing.T) {
	one, zero := intstr.FromInt32(1), intstr.FromInt32(0)
	surge := appsv1.RollingUpdateDaemonSet{MaxSurge: &one, MaxUnavailable: &zero}
	inPlace := appsv1.RollingUpdateDaemonSet{MaxSurge: &zero, MaxUnavailable: &one}
	for name, c := range map[string]struct {
		rolling        appsv1.RollingUpdateDaemonSet
		pods           []*corev1.Pod
		remove, create []string
	}{
		"surge: an unavailable old pod goes at once": {
			rolling: surge, pods: []*corev1.Pod{pod("a", "a", fresh, notReady), pod("b", "b", stale, notReady)}, remove: []string{"b"},
		},
		"surge: an available old pod stays while another pod is missing": {
			rolling: surge, pods: []*corev1.Pod{pod("a", "a", fresh, notReady), pod("b", "b", stale)},
		},
		"surge: an available old pod goes once enough others are available": {
			rolling: surge, pods: []*corev1.Pod{pod("a", "a", fresh), pod("b", "b", stale)}, remove: []string{"b"},
		},
		"surge: a pod of the current template stays": {
			rolling: surge, pods: []*corev1.Pod{pod("a", "a", fresh), pod("b", "b", fresh)},
		},
		"surge: it takes no surge from other nodes": {
			rolling: surge, pods: []*corev1.Pod{pod("a", "a", stale), pod("b", "b", stale)}, remove: []string{"b"}, create: []string{"a"},
		},
		"in place: an old pod goes within maxUnavailable": {
			rolling: inPlace, pods: []*corev1.Pod{pod("a", "a", fresh), pod("b", "b", stale)}, remove: []string{"b"},
		},
		"in place: an old pod waits for maxUnavailable": {
			rolling: inPlace, pods: []*corev1.Pod{pod("a", "a", fresh, notReady), pod("b", "b", stale)},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := nodes("a", "b")
			taint(n[1], "dedicated", corev1.TaintEffectNoSchedule)
			ds := set()
			ds.Spec.UpdateStrategy.RollingUpdate = &c.rolling
			plan := daemonset.Plan(ds, state(n, c.pods...))
			if got := names(plan.Delete); !slices.Equal(got, c.remove) || !slices.Equal(plan.Create, c.create) {
				t.Errorf("deleted pods %v and created pods on nodes %v, want %v and %v", got, plan.Create, c.remove, c.create)
			}
		})
	}
}

func TestPodWithoutANodeIsKept(t *testing.T) {
	p := pod("adopted", "", "", notReady, phase(corev1.PodPending))
	plan := daemonset.Plan(set(), state(nodes("a"), p))
	if len(plan.Delete) != 0 || !slices.Equal(plan.Create, []string{"a"}) {
		t.Errorf("deleted pods %v and created pods on nodes %v, want none and a", names(plan.Delete), plan.Create)
	}
}

// TestRolloutStaysWithinBounds simulates rollouts step by step, with pods that become
// ready and terminate in random order.
func TestRolloutStaysWithinBounds(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		count, limit := 1+rng.IntN(8), int32(1+rng.IntN(3))
		surge := rng.IntN(2) == 0
		zero, bound := intstr.FromInt32(0), intstr.FromInt32(limit)
		ds := set()
		ds.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &bound, MaxSurge: &zero}
		if surge {
			ds.Spec.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &zero, MaxSurge: &bound}
		}
		var all []string
		var pods []*corev1.Pod
		for i := range count {
			all = append(all, fmt.Sprintf("n%d", i))
			pods = append(pods, pod(fmt.Sprintf("old-%d", i), all[i], stale))
		}
		made := 0
		for step := 0; ; step++ {
			if step > 500 {
				t.Fatalf("seed %d: the rollout does not finish; pods: %v", seed, names(pods))
			}
			plan := daemonset.Plan(ds, state(nodes(all...), pods...))
			for _, p := range plan.Delete {
				deleted(p)
			}
			for _, node := range plan.Create {
				made++
				pods = append(pods, pod(fmt.Sprintf("new-%d", made), node, fresh, younger, notReady))
			}
			served, extra := map[string]bool{}, 0
			on := map[string]map[string]int{}
			for _, p := range pods {
				if p.DeletionTimestamp != nil {
					continue
				}
				served[p.Spec.NodeName] = served[p.Spec.NodeName] || len(p.Status.Conditions) > 0
				if on[p.Spec.NodeName] == nil {
					on[p.Spec.NodeName] = map[string]int{}
				}
				on[p.Spec.NodeName][p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey]]++
			}
			unserved := count
			for node, hashes := range on {
				if served[node] {
					unserved--
				}
				if hashes[fresh] > 1 || hashes[stale] > 1 {
					t.Fatalf("seed %d: two pods of the same template on node %s", seed, node)
				}
				if hashes[fresh]+hashes[stale] > 1 {
					extra++
				}
			}
			if most := int(limit); !surge && unserved > most || surge && (unserved > 0 || extra > most) {
				t.Fatalf("seed %d: %d nodes without a ready pod and %d with two pods, limit %d, surge %v", seed, unserved, extra, limit, surge)
			}
			if plan.Status.UpdatedNumberScheduled == int32(count) && plan.Status.NumberAvailable == int32(count) && len(pods) == count {
				break
			}
			// One pod chosen at random makes progress: it terminates or becomes ready.
			i := rng.IntN(len(pods))
			if p := pods[i]; p.DeletionTimestamp != nil {
				pods = slices.Delete(pods, i, i+1)
			} else if len(p.Status.Conditions) == 0 {
				pods[i] = pod(p.Name, p.Spec.NodeName, fresh, younger)
			}
		}
	}
}

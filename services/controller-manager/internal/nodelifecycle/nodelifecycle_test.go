package nodelifecycle

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/podstate"
	"keelson.dev/services/controller-manager/internal/testkit"
	"keelson.dev/services/internal/controller"
)

var now = time.Unix(1e9, 0)

func node(name, zone string, ready corev1.ConditionStatus, taints ...corev1.Taint) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone}}}
	n.Spec.Taints = taints
	if ready != "" {
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
	}
	return n
}

func show(taints []corev1.Taint) string {
	var out []string
	for _, t := range taints {
		out = append(out, strings.TrimPrefix(t.Key, "node.kubernetes.io/")+":"+string(t.Effect))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func TestTaints(t *testing.T) {
	own := corev1.Taint{Key: "team", Value: "a", Effect: corev1.TaintEffectNoSchedule}
	notReady := corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}
	leave := corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute}
	pressed := node("n", "a", corev1.ConditionTrue)
	pressed.Status.Conditions = append(pressed.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue})
	cordoned := node("n", "a", corev1.ConditionTrue)
	cordoned.Spec.Unschedulable = true
	for name, c := range map[string]struct {
		node  *corev1.Node
		evict bool
		want  string
	}{
		"ready":                    {node("n", "a", corev1.ConditionTrue), true, ""},
		"ready again":              {node("n", "a", corev1.ConditionTrue, notReady, leave, own), true, "team:NoSchedule"},
		"never reported":           {node("n", "a", ""), true, "not-ready:NoSchedule"},
		"not ready":                {node("n", "a", corev1.ConditionFalse), true, "not-ready:NoExecute not-ready:NoSchedule"},
		"not ready, zone is paced": {node("n", "a", corev1.ConditionFalse), false, "not-ready:NoSchedule"},
		"unreachable":              {node("n", "a", corev1.ConditionUnknown, own), true, "team:NoSchedule unreachable:NoExecute unreachable:NoSchedule"},
		"told stays told":          {node("n", "a", corev1.ConditionUnknown, leave), false, "unreachable:NoExecute unreachable:NoSchedule"},
		"disk pressure":            {pressed, true, "disk-pressure:NoSchedule"},
		"cordoned":                 {cordoned, true, "unschedulable:NoSchedule"},
	} {
		if got := show(Taints(c.node, c.evict, now)); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestTaintsKeepTheirTime(t *testing.T) {
	before := metav1.NewTime(now.Add(-time.Hour))
	n := node("n", "a", corev1.ConditionUnknown, corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute, TimeAdded: &before})
	for _, taint := range Taints(n, true, now) {
		if taint.Effect == corev1.TaintEffectNoExecute && !taint.TimeAdded.Equal(&before) {
			t.Errorf("the taint's time moved to %s", taint.TimeAdded)
		}
	}
}

func TestPace(t *testing.T) {
	zone := func(name string, all, lost int) []*corev1.Node {
		var out []*corev1.Node
		for i := range all {
			status := corev1.ConditionTrue
			if i < lost {
				status = corev1.ConditionUnknown
			}
			out = append(out, node(fmt.Sprint(name, i), name, status))
		}
		return out
	}
	for name, c := range map[string]struct {
		nodes []*corev1.Node
		zone  string
		want  time.Duration
	}{
		"one of three":             {zone("a", 3, 1), "/a", evictionEvery},
		"everything":               {zone("a", 3, 3), "/a", 0},
		"both zones":               {append(zone("a", 2, 2), zone("b", 2, 2)...), "/a", 0},
		"one whole zone of two":    {append(zone("a", 2, 2), zone("b", 2, 0)...), "/a", evictionEvery},
		"most of a small zone":     {append(zone("a", 10, 6), zone("b", 2, 0)...), "/a", 0},
		"most of a large zone":     {append(zone("a", 60, 40), zone("b", 2, 0)...), "/a", evictionSlowly},
		"two of three are too few": {append(zone("a", 3, 2), zone("b", 2, 0)...), "/a", evictionEvery},
	} {
		if got := Pace(c.nodes)[c.zone]; got != c.want {
			t.Errorf("%s: got %s, want %s", name, got, c.want)
		}
	}
}

func TestLeaves(t *testing.T) {
	added := metav1.NewTime(now.Add(-10 * time.Second))
	taint := corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute, TimeAdded: &added}
	seconds := func(n int64) *int64 { return &n }
	tol := func(s *int64) corev1.Toleration {
		return corev1.Toleration{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: s}
	}
	for name, c := range map[string]struct {
		tolerations []corev1.Toleration
		in          time.Duration
		ever        bool
	}{
		"none":          {nil, 0, true},
		"forever":       {[]corev1.Toleration{tol(nil)}, 0, false},
		"for a time":    {[]corev1.Toleration{tol(seconds(30))}, 20 * time.Second, true},
		"the shortest":  {[]corev1.Toleration{tol(nil), tol(seconds(30)), tol(seconds(15))}, 5 * time.Second, true},
		"another taint": {[]corev1.Toleration{{Key: "other", Operator: corev1.TolerationOpExists}}, 0, true},
		"everything":    {[]corev1.Toleration{{Operator: corev1.TolerationOpExists}}, 0, false},
	} {
		at, ever := Leaves(&corev1.Pod{Spec: corev1.PodSpec{Tolerations: c.tolerations}}, []corev1.Taint{taint}, now)
		if ever != c.ever || ever && at.Sub(now) != c.in {
			t.Errorf("%s: in %s, %t; want %s, %t", name, at.Sub(now), ever, c.in, c.ever)
		}
	}
}

// The time of a pod that came to a node after its taint counts from then.
func TestLeavesAfterItCame(t *testing.T) {
	added, came := metav1.NewTime(now.Add(-time.Hour)), metav1.NewTime(now.Add(-10*time.Second))
	seconds := int64(30)
	p := &corev1.Pod{Spec: corev1.PodSpec{Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists, TolerationSeconds: &seconds}}}}
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: came}}
	at, ever := Leaves(p, []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoExecute, TimeAdded: &added}}, now)
	if !ever || at.Sub(now) != 20*time.Second {
		t.Errorf("in %s, %t; want in 20s", at.Sub(now), ever)
	}
}

// clock is a clock that the test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }

func (c *clock) advance(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.now = c.now.Add(d) }

// lease renews a node's Lease and waits until the cache shows it: the clock of
// these tests goes on by the test's own steps, and must not run ahead of the watch.
func lease(w *testkit.World, name string, at time.Time) {
	w.Helper()
	renew := metav1.NewMicroTime(at)
	if testkit.Exists[*coordinationv1.Lease](w, corev1.NamespaceNodeLease, name) {
		testkit.Update(w, corev1.NamespaceNodeLease, name, func(l *coordinationv1.Lease) { l.Spec.RenewTime = &renew })
	} else {
		testkit.Create(w, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: name},
			Spec:       coordinationv1.LeaseSpec{RenewTime: &renew},
		})
	}
	if err := cluster.NodeLeases(w.Cluster).CatchUp(w.Context()); err != nil {
		w.Fatal(err)
	}
}

func ready(w *testkit.World, name string) corev1.ConditionStatus {
	c := condition(testkit.Get[*corev1.Node](w, "", name), corev1.NodeReady)
	if c == nil {
		return ""
	}
	return c.Status
}

// A silent node becomes Unknown and tainted, its pods are not ready any more and
// leave; a node that goes on is left alone; back again, it is as before.
func TestSilentNode(t *testing.T) {
	w := testkit.Start(t)
	time0 := &clock{now: time.Now()}
	for _, n := range []string{"alive", "silent", "third"} {
		testkit.Create(w, node(n, "a", corev1.ConditionTrue))
		lease(w, n, time0.Now())
	}
	p := testkit.Ready(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"}, Spec: corev1.PodSpec{NodeName: "silent"}})
	testkit.Create(w, p)
	// The grace is short in real time, so that looks come soon; the clock decides.
	c := New(w.Cluster, Config{Grace: 50 * time.Millisecond, StartGrace: time.Hour, Now: time0.Now})
	w.Run(c, NewEviction(w.Cluster))
	w.Eventually("silence is noticed", func() bool {
		time0.advance(10 * time.Millisecond)
		lease(w, "alive", time0.Now())
		lease(w, "third", time0.Now())
		return ready(w, "silent") == corev1.ConditionUnknown
	})
	if ready(w, "alive") != corev1.ConditionTrue {
		t.Error("a node that was heard became Unknown")
	}
	w.Eventually("an event names the pod", func() bool {
		return slices.ContainsFunc(testkit.List[*corev1.Event](w, "default"), func(e *corev1.Event) bool {
			return e.InvolvedObject.Kind == "Pod" && e.InvolvedObject.Name == "p" && e.Reason == "NodeNotReady" && e.Message == "Node is not ready"
		})
	})
	w.Eventually("the pod is told to leave", func() bool {
		p, err := client.For[*corev1.Pod](w.Cluster.Client).Get(t.Context(), "default", "p")
		return apierrors.IsNotFound(err) || err == nil && p.DeletionTimestamp != nil
	})

	lease(w, "silent", time0.Now())
	w.Eventually("its taints go", func() bool {
		// The Lease and the Node come by different watches: until the renewal is seen,
		// the node is told again that it is Unknown, and says again that it is not.
		if ready(w, "silent") != corev1.ConditionTrue {
			testkit.Update(w, "", "silent", func(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionTrue }, statusDoor)
		}
		return len(testkit.Get[*corev1.Node](w, "", "silent").Spec.Taints) == 0
	})
}

// A taint that a person sets does not say since when it is there: the time of a
// toleration counts from when the taint was first seen, and later looks at the pod do
// not postpone it.
func TestTaintWithoutTime(t *testing.T) {
	w := testkit.Start(t)
	c := &clock{now: time.Now()}
	testkit.Create(w, node("n", "a", corev1.ConditionTrue))
	seconds := int64(3600)
	pod := func(name string, tolerations ...corev1.Toleration) {
		testkit.Create(w, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Finalizers: []string{"example.com/hold"}},
			Spec:       corev1.PodSpec{NodeName: "n", Tolerations: tolerations},
		})
	}
	pod("strict")
	pod("patient", corev1.Toleration{Key: "emptied", Operator: corev1.TolerationOpExists, TolerationSeconds: &seconds})
	pod("settled", corev1.Toleration{Key: "emptied", Operator: corev1.TolerationOpExists})
	w.CatchUp()
	w.Run(newEviction(w.Cluster, c.Now))
	leaves := func(name string) bool {
		p, err := client.For[*corev1.Pod](w.Cluster.Client).Get(t.Context(), "default", name)
		return apierrors.IsNotFound(err) || err == nil && p.DeletionTimestamp != nil
	}
	touch := func(n int) {
		testkit.Update(w, "default", "patient", func(p *corev1.Pod) { p.Labels = map[string]string{"n": fmt.Sprint(n)} })
	}
	testkit.Update(w, "", "n", func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: "emptied", Effect: corev1.TaintEffectNoExecute}}
	})
	w.Eventually("the strict pod leaves", func() bool { return leaves("strict") })
	held := testkit.Get[*corev1.Pod](w, "default", "strict")
	if c := podstate.Condition(held, corev1.DisruptionTarget); c == nil || c.ObservedGeneration == 0 || c.ObservedGeneration > held.Generation {
		t.Errorf("the condition DisruptionTarget is %+v of generation %d", c, held.Generation)
	}
	c.advance(50 * time.Minute)
	touch(1)
	w.Never("the patient pod leaves before its time", func() bool { return leaves("patient") })
	c.advance(11 * time.Minute)
	touch(2)
	w.Eventually("the patient pod leaves", func() bool { return leaves("patient") })
	w.Never("the settled pod leaves", func() bool { return leaves("settled") })
}

// A node that is heard in time costs no reconcile, however long it goes on.
func TestHeartbeatsReconcileNothing(t *testing.T) {
	const grace = 20 * time.Millisecond // in real time too: the deadlines' timers run in it
	w := testkit.Start(t)
	time0 := &clock{now: time.Now()}
	testkit.Create(w, node("n", "a", corev1.ConditionTrue))
	lease(w, "n", time0.Now())
	c := New(w.Cluster, Config{Grace: grace, StartGrace: time.Hour, Now: time0.Now})
	var reconciles, looks atomic.Int32
	reconcile, extend := c.Reconcile, c.Extend
	c.Reconcile = func(ctx context.Context, key controller.Key) (controller.Result, error) {
		reconciles.Add(1)
		return reconcile(ctx, key)
	}
	c.Extend = func(key controller.Key) time.Duration {
		defer looks.Add(1)
		return extend(key)
	}
	w.Run(c)
	w.Eventually("ten graces pass", func() bool {
		time0.advance(grace / 4)
		lease(w, "n", time0.Now())
		return looks.Load() >= 10
	})
	if n := reconciles.Load(); n != 1 {
		t.Errorf("%d reconciles of a node that was heard all the time, want the first one alone", n)
	}
}

var statusDoor = client.Subresource("status")

func TestLeaseStatesThePatience(t *testing.T) {
	w := testkit.Start(t)
	eight, hour := int32(8), int32(3600)
	for name, seconds := range map[string]*int32{"short": &eight, "long": &hour, "silent": nil} {
		testkit.Create(w, &coordinationv1.Lease{
			ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: name}, Spec: coordinationv1.LeaseSpec{LeaseDurationSeconds: seconds},
		})
	}
	w.Eventually("the cache", func() bool { return cluster.NodeLeases(w.Cluster).Len() == 3 })
	r := &reconciler{Cluster: w.Cluster, NodeLeases: cluster.NodeLeases(w.Cluster), config: Config{Grace: 40 * time.Second}}
	for name, want := range map[string]time.Duration{"short": 8 * time.Second, "long": 40 * time.Second, "silent": 40 * time.Second, "none": 40 * time.Second} {
		if got := r.grace(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

package pipeline_test

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
)

// withSecond sets *second to another pipeline over the same store, as another apiserver has.
func withSecond(second **pipeline.Pipeline) func(*pipeline.Config) {
	return func(c *pipeline.Config) { *second = pipeline.New(*c) }
}

// running creates a pod with the label app=a in phase Running; ready is its Ready condition.
func (f *fixture) running(name string, ready corev1.ConditionStatus) *corev1.Pod {
	f.Helper()
	p := pod(name)
	p.Labels = map[string]string{"app": "a"}
	obj := f.mustCreate(p).(*corev1.Pod)
	obj.Status.Phase = corev1.PodRunning
	obj.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}
	return f.mustStatus(obj).(*corev1.Pod)
}

// mustStatus writes an object's status.
func (f *fixture) mustStatus(obj resource.Object) resource.Object {
	f.Helper()
	t := f.target(obj)
	t.Subresource = "status"
	out, err := f.Update(f.ctx, t, f.body(obj), pipeline.WriteOptions{})
	if err != nil {
		f.Fatal(err)
	}
	return out.Item.Object().DeepCopyObject().(resource.Object)
}

// budget creates a budget for the pods of running, with this status.
func (f *fixture) budget(allowed, healthy, desired int32) *policyv1.PodDisruptionBudget {
	f.Helper()
	b := f.mustCreate(&policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "budget"},
		Spec:       policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}},
	}).(*policyv1.PodDisruptionBudget)
	b.Status = policyv1.PodDisruptionBudgetStatus{
		ObservedGeneration: b.Generation, DisruptionsAllowed: allowed, CurrentHealthy: healthy, DesiredHealthy: desired, ExpectedPods: healthy,
	}
	return f.mustStatus(b).(*policyv1.PodDisruptionBudget)
}

func (f *fixture) evict(p *pipeline.Pipeline, name string, o pipeline.WriteOptions) error {
	f.Helper()
	data, err := (&policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name}}).Marshal()
	if err != nil {
		f.Fatal(err)
	}
	_, err = p.Create(f.ctx, pipeline.Target{Resource: podGVR, Namespace: "ns", Name: name, Subresource: "eviction"},
		pipeline.Body{Data: data, Type: pipeline.Message, GVK: policyv1.SchemeGroupVersion.WithKind("Eviction")}, o)
	return err
}

func (f *fixture) storedBudget() *policyv1.PodDisruptionBudget {
	f.Helper()
	out, err := f.Get(f.ctx, f.target(&policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "budget"}}), pipeline.GetOptions{})
	if err != nil {
		f.Fatal(err)
	}
	return out.Item.Object().(*policyv1.PodDisruptionBudget)
}

// Concurrent evictions through two apiservers succeed exactly as often as the budget allows.
func TestEvictionsStayWithinBudget(t *testing.T) {
	const pods, allowed = 32, 5
	var other *pipeline.Pipeline
	f := newFixture(t, withSecond(&other))
	for i := range pods {
		f.running(fmt.Sprint("p", i), corev1.ConditionTrue)
	}
	f.budget(allowed, pods, pods-allowed)
	var evicted atomic.Int32
	var wg sync.WaitGroup
	for i := range pods {
		wg.Go(func() {
			p := f.Pipeline
			if i%2 == 0 {
				p = other
			}
			switch err := f.evict(p, fmt.Sprint("p", i), pipeline.WriteOptions{}); {
			case err == nil:
				evicted.Add(1)
			case !apierrors.IsTooManyRequests(err):
				t.Errorf("p%d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if n := evicted.Load(); n != allowed {
		t.Errorf("%d pods were evicted, want %d", n, allowed)
	}
	b := f.storedBudget()
	if b.Status.DisruptionsAllowed != 0 || len(b.Status.DisruptedPods) != allowed {
		t.Errorf("budget status: %s", asJSON(b.Status))
	}
	if len(b.Status.Conditions) != 1 || b.Status.Conditions[0].Reason != policyv1.InsufficientPodsReason {
		t.Errorf("conditions: %s", asJSON(b.Status.Conditions))
	}
}

// An eviction that is paused for any time between its charge and its delete does not exceed the
// budget, though the budget's controller has given it up meanwhile.
func TestPausedEvictionStaysWithinBudget(t *testing.T) {
	var other *pipeline.Pipeline
	f, paused := withPausedStore(t, &other)
	f.running("a", corev1.ConditionTrue)
	f.running("b", corev1.ConditionTrue)
	f.budget(1, 2, 1)
	paused.of = "/pods/"
	paused.before = func() {
		b := f.storedBudget().DeepCopy()
		f.endPeriod()
		b.Status.DisruptionsAllowed, b.Status.DisruptedPods = 1, nil
		f.mustStatus(b)
		if err := f.evict(other, "b", pipeline.WriteOptions{}); err != nil {
			t.Errorf("the other eviction: %v", err)
		}
	}
	if err := f.evict(f.Pipeline, "a", pipeline.WriteOptions{}); !apierrors.IsTooManyRequests(err) {
		t.Errorf("the paused eviction: %v", err)
	}
	if p := get(f, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a"}}); p == nil || p.DeletionTimestamp != nil {
		t.Errorf("both pods were evicted")
	}
}

func TestEvictionChargesBudget(t *testing.T) {
	always := policyv1.AlwaysAllow
	for name, c := range map[string]struct {
		ready            corev1.ConditionStatus
		phase            corev1.PodPhase
		change           func(*policyv1.PodDisruptionBudget)
		allowed          int32
		healthy, desired int32
		dryRun           bool
		code             int32
		message, cause   string
		left             int32
	}{
		"allowed":          {ready: "True", allowed: 2, healthy: 3, desired: 1, left: 1},
		"dry run":          {ready: "True", allowed: 2, healthy: 3, desired: 1, dryRun: true, left: 2},
		"refused":          {ready: "True", healthy: 2, desired: 2, code: 429, message: "Cannot evict pod as it would violate the pod's disruption budget.", cause: "The disruption budget budget needs 2 healthy pods and has 2 currently"},
		"dry run, refused": {ready: "True", healthy: 2, desired: 2, dryRun: true, code: 429, message: "Cannot evict pod", cause: "needs 2 healthy"},
		"not observed": {ready: "True", allowed: 1, healthy: 2, desired: 1, code: 429, message: "Cannot evict pod", cause: "The disruption budget budget is still being processed by the server.", left: 1,
			change: func(b *policyv1.PodDisruptionBudget) { b.Status.ObservedGeneration = 0 }},
		"sync failed": {ready: "True", healthy: 3, desired: 1, code: 429, message: "Cannot evict pod", cause: "does not allow evicting pods currently because it failed sync: why",
			change: func(b *policyv1.PodDisruptionBudget) {
				b.Status.Conditions = []metav1.Condition{{Type: policyv1.DisruptionAllowedCondition, Status: "False", Reason: policyv1.SyncFailedReason, Message: "why", LastTransitionTime: metav1.Now()}}
			}},
		"unready, healthy budget":   {ready: "False", healthy: 2, desired: 2},
		"unready, unhealthy budget": {ready: "False", healthy: 1, desired: 2, code: 429, message: "Cannot evict pod", cause: "needs 2 healthy pods and has 1 currently"},
		"unready, always":           {ready: "False", healthy: 1, desired: 2, change: func(b *policyv1.PodDisruptionBudget) { b.Spec.UnhealthyPodEvictionPolicy = &always }},
		"ended":                     {ready: "True", phase: corev1.PodFailed, healthy: 1, desired: 2},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			pod := f.running("p", c.ready)
			if c.phase != "" {
				pod.Status.Phase = c.phase
				f.mustStatus(pod)
			}
			b := f.budget(c.allowed, c.healthy, c.desired)
			if c.change != nil {
				c.change(b)
				if b.Spec.UnhealthyPodEvictionPolicy != nil {
					out, err := f.Update(f.ctx, f.target(b), f.body(b), pipeline.WriteOptions{})
					if err != nil {
						t.Fatal(err)
					}
					b = out.Item.Object().DeepCopyObject().(*policyv1.PodDisruptionBudget)
					b.Status.ObservedGeneration = b.Generation
				}
				f.mustStatus(b)
			}
			err := f.evict(f.Pipeline, "p", pipeline.WriteOptions{DryRun: c.dryRun})
			if c.code == 0 && err != nil {
				t.Fatal(err)
			}
			if c.code != 0 {
				status := apierrors.ReasonForError(err)
				s, ok := err.(apierrors.APIStatus)
				if !ok || s.Status().Code != c.code || !strings.Contains(s.Status().Message, c.message) {
					t.Fatalf("got %v (%s)", err, status)
				}
				cause, ok := apierrors.StatusCause(err, policyv1.DisruptionBudgetCause)
				if !ok || !strings.Contains(cause.Message, c.cause) {
					t.Errorf("cause %q", cause.Message)
				}
			}
			if left := f.storedBudget().Status.DisruptionsAllowed; left != c.left {
				t.Errorf("disruptionsAllowed is %d, want %d", left, c.left)
			}
		})
	}
}

// A pod that two budgets select cannot be evicted.
func TestEvictionTwoBudgets(t *testing.T) {
	f := newFixture(t)
	f.running("p", corev1.ConditionTrue)
	f.budget(1, 2, 1)
	f.mustCreate(&policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "other"},
		Spec:       policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{}},
	})
	err := f.evict(f.Pipeline, "p", pipeline.WriteOptions{})
	wantStatus(t, err, 500, "", "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.")
}

// An eviction that admission refuses takes nothing from the budget: a node may evict only pods
// that are bound to it.
func TestRefusedEvictionIsNotCharged(t *testing.T) {
	f := newFixture(t)
	f.running("p", corev1.ConditionTrue)
	f.budget(1, 2, 1)
	node := request.User{Name: "system:node:other", Groups: []string{"system:nodes", "system:authenticated", "system:masters"}}
	admin := f.ctx
	f.ctx = request.WithUser(admin, node)
	if err := f.evict(f.Pipeline, "p", pipeline.WriteOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("eviction by another node: %v", err)
	}
	f.ctx = admin
	if b := f.storedBudget(); b.Status.DisruptionsAllowed != 1 || len(b.Status.DisruptedPods) != 0 {
		t.Errorf("budget status after a refused eviction: %s", asJSON(b.Status))
	}
}

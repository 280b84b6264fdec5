package disruption_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/controller-manager/internal/deployment"
	"keelson.dev/services/controller-manager/internal/disruption"
	"keelson.dev/services/controller-manager/internal/replication"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func budget(least, most string) *policyv1.PodDisruptionBudget {
	b := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Generation: 3}}
	b.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	if least != "" {
		v := intstr.Parse(least)
		b.Spec.MinAvailable = &v
	}
	if most != "" {
		v := intstr.Parse(most)
		b.Spec.MaxUnavailable = &v
	}
	return b
}

func pods(ready ...bool) []*corev1.Pod {
	var out []*corev1.Pod
	for i, is := range ready {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("web-%d", i), Labels: map[string]string{"app": "web"}}}
		if is {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		out = append(out, p)
	}
	return out
}

func wants(n int) disruption.Scales {
	return func(*corev1.Pod) (disruption.Scale, error) { return disruption.Scale{UID: "rs", Replicas: n}, nil }
}

func TestDisruptionsAllowed(t *testing.T) {
	for name, c := range map[string]struct {
		least, most                string
		pods                       []*corev1.Pod
		scale                      int
		allowed, desired, expected int32
	}{
		"one eviction allowed":            {least: "2", pods: pods(true, true, true), scale: 3, allowed: 1, desired: 2, expected: 3},
		"no eviction allowed":             {least: "3", pods: pods(true, true, true), scale: 3, desired: 3, expected: 3},
		"one pod is not ready":            {least: "2", pods: pods(true, true, false), scale: 3, desired: 2, expected: 3},
		"percentage, rounded up":          {least: "50%", pods: pods(true, true, true), scale: 3, allowed: 1, desired: 2, expected: 3},
		"percentage of the wanted number": {least: "50%", pods: pods(true, true), scale: 4, desired: 2, expected: 4},
		"maxUnavailable":                  {most: "1", pods: pods(true, true, true), scale: 3, allowed: 1, desired: 2, expected: 3},
		"maxUnavailable, one is missing":  {most: "1", pods: pods(true, true), scale: 3, desired: 2, expected: 3},
		"maxUnavailable, rounded up":      {most: "30%", pods: pods(true, true, true), scale: 3, allowed: 1, desired: 2, expected: 3},
		"maxUnavailable above the scale":  {most: "9", pods: pods(true), scale: 1, allowed: 1, desired: 0, expected: 1},
		"no pods":                         {least: "0"},
	} {
		t.Run(name, func(t *testing.T) {
			s := disruption.Plan(budget(c.least, c.most), c.pods, wants(c.scale), now).Status
			if s.DisruptionsAllowed != c.allowed || s.DesiredHealthy != c.desired || s.ExpectedPods != c.expected || s.ObservedGeneration != 3 {
				t.Errorf("status %+v, want %+v", s, c)
			}
			if len(s.Conditions) != 1 || (s.Conditions[0].Status == metav1.ConditionTrue) != (c.allowed > 0) {
				t.Errorf("conditions %+v", s.Conditions)
			}
		})
	}
}

func TestEvictedPodsCountAsLost(t *testing.T) {
	b := budget("1", "")
	all := pods(true, true, true, true)
	deleted := metav1.NewTime(now)
	all[2].DeletionTimestamp = &deleted
	b.Status.DisruptedPods = map[string]metav1.Time{
		"web-0": metav1.NewTime(now.Add(-time.Minute)), "web-1": metav1.NewTime(now.Add(-time.Hour)),
		"web-2": metav1.NewTime(now), "gone": metav1.NewTime(now),
	}
	p := disruption.Plan(b, all, wants(4), now)
	if s := p.Status; s.CurrentHealthy != 2 || s.DisruptionsAllowed != 1 || len(s.DisruptedPods) != 1 {
		t.Errorf("status %+v", s)
	}
	if p.RequeueAfter != time.Minute {
		t.Errorf("requeued after %v, want 1m", p.RequeueAfter)
	}
	if len(p.Events) != 1 || p.Events[0].Reason != "NotDeleted" || p.Events[0].Pod != all[1] {
		t.Errorf("events %+v, want NotDeleted for pod web-1", p.Events)
	}
}

func TestUnknownScaleAllowsNoDisruptions(t *testing.T) {
	b := budget("", "1")
	b.Status.DisruptionsAllowed = 5
	p := disruption.Plan(b, pods(true), func(*corev1.Pod) (disruption.Scale, error) { return disruption.Scale{}, errors.New("no scale") }, now)
	if p.Status.DisruptionsAllowed != 0 || p.Status.Conditions[0].Reason != policyv1.SyncFailedReason || p.Events[0].Reason != "CalculateExpectedPodCountFailed" {
		t.Errorf("plan %+v", p)
	}
}

func TestControllersKeepStatusAndConditions(t *testing.T) {
	w := Start(t)
	w.Kubelet("n1", nil)
	labels, two := map[string]string{"app": "web"}, int32(2)
	b := budget("", "1")
	b.Generation = 0
	Create(w, b)
	Create(w, &corev1.ReplicationController{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec: corev1.ReplicationControllerSpec{Replicas: &two, Selector: labels, Template: &corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}},
		}},
	})
	w.CatchUp()
	w.Run(disruption.New(w.Cluster), disruption.NewStale(w.Cluster), deployment.New(w.Cluster), replication.New(w.Cluster))
	w.Eventually("one of two pods may be evicted", func() bool {
		s := Get[*policyv1.PodDisruptionBudget](w, "default", "web").Status
		return s.DisruptionsAllowed == 1 && s.CurrentHealthy == 2 && s.ExpectedPods == 2
	})
	// The pod has the condition DisruptionTarget, but nothing deletes it.
	name := List[*corev1.Pod](w, "default")[0].Name
	Update(w, "default", name, func(p *corev1.Pod) {
		p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{
			Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(time.Now().Add(-time.Hour)),
		})
	}, client.Subresource("status"))
	w.Eventually("the condition is reset", func() bool {
		for _, c := range Get[*corev1.Pod](w, "default", name).Status.Conditions {
			if c.Type == corev1.DisruptionTarget {
				return c.Status == corev1.ConditionFalse
			}
		}
		return false
	})
}

// TestExpectedPodsByController has one pod with the given controller, and a budget with
// maxUnavailable. The ReplicaSet and the StatefulSet "web" want 3 pods.
func TestExpectedPodsByController(t *testing.T) {
	w := Start(t)
	labels, three := map[string]string{"app": "web"}, int32(3)
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}}}
	meta := metav1.ObjectMeta{Namespace: "default", Name: "web"}
	rs := Create(w, &appsv1.ReplicaSet{ObjectMeta: meta, Spec: appsv1.ReplicaSetSpec{Replicas: &three, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template}})
	ds := Create(w, &appsv1.DaemonSet{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template}})
	b := budget("", "1")
	b.Generation = 0
	Create(w, b)
	w.CatchUp()
	w.Run(disruption.New(w.Cluster))
	for name, c := range map[string]struct {
		ref      metav1.OwnerReference
		expected int32
		failure  string // the condition's message, or empty
	}{
		"replica set":                {metav1.OwnerReference{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web", UID: rs.UID}, 3, ""},
		"replica set that is gone":   {metav1.OwnerReference{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "web", UID: "former"}, 0, `found no controllers for pod "web-0"`},
		"kind without scale":         {metav1.OwnerReference{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "web", UID: ds.UID}, 0, "daemonsets.apps does not implement the scale subresource"},
		"same kind of another group": {metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "ReplicaSet", Name: "web", UID: rs.UID}, 0, `no matches for kind "ReplicaSet" in version "example.com/v1"`},
		"kind that does not exist":   {metav1.OwnerReference{APIVersion: "example.com/v1", Kind: "Farm", Name: "web", UID: "farm"}, 0, `no matches for kind "Farm" in version "example.com/v1"`},
	} {
		yes := true
		c.ref.Controller = &yes
		p := pods(true)[0]
		p.OwnerReferences, p.Spec = []metav1.OwnerReference{c.ref}, template.Spec
		Create(w, p)
		w.Eventually(name, func() bool {
			s := Get[*policyv1.PodDisruptionBudget](w, "default", "web").Status
			if len(s.Conditions) != 1 {
				return false
			}
			if c.failure != "" {
				return s.Conditions[0].Reason == policyv1.SyncFailedReason && s.Conditions[0].Message == c.failure && s.DisruptionsAllowed == 0
			}
			return s.Conditions[0].Reason == policyv1.InsufficientPodsReason && s.ExpectedPods == c.expected
		})
		Delete[*corev1.Pod](w, "default", p.Name, client.Grace(0))
		w.Eventually("the pod is gone", func() bool {
			return len(List[*corev1.Pod](w, "default")) == 0 && Get[*policyv1.PodDisruptionBudget](w, "default", "web").Status.Conditions[0].Reason == policyv1.InsufficientPodsReason
		})
	}
}

// TestScaleThatTheCacheDoesNotShow cuts the watch of ReplicaSets before one is created.
func TestScaleThatTheCacheDoesNotShow(t *testing.T) {
	w := Start(t)
	c := disruption.New(w.Cluster)
	w.Server.Fail(func(method string, ref *resourcev1.Ref) error {
		if ref.GetResource() == "replicasets" && (method == "Watch" || method == "List") {
			return apierrors.NewServiceUnavailable("the watch of replica sets is cut")
		}
		return nil
	})
	w.Server.Cut()
	labels, three := map[string]string{"app": "web"}, int32(3)
	rs := Create(w, &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"},
		Spec:       appsv1.ReplicaSetSpec{Replicas: &three, Selector: &metav1.LabelSelector{MatchLabels: labels}},
	})
	p := pods(true)[0]
	p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(rs, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
	Create(w, p)
	b := budget("", "1")
	b.Generation = 0
	Create(w, b)
	w.Run(c)
	w.Eventually("the budget expects three pods", func() bool {
		return Get[*policyv1.PodDisruptionBudget](w, "default", "web").Status.ExpectedPods == 3
	})
}

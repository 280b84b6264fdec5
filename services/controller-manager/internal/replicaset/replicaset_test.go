package replicaset_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"go.uber.org/goleak"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/services/controller-manager/internal/replicaset"
	. "keelson.dev/services/controller-manager/internal/testkit" //nolint:revive // the tests' own words.
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

func set(n int32) *appsv1.ReplicaSet {
	labels := map[string]string{"app": "web"}
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Generation: 2},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &n, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "v1"}}},
			},
		},
	}
}

type option func(*corev1.Pod)

func pod(name string, opts ...option) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: "uid", Labels: map[string]string{"app": "web"}, CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))},
		Spec:       corev1.PodSpec{NodeName: "n1"},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	ready(time.Hour)(p)
	for _, o := range opts {
		o(p)
	}
	return p
}

func ready(since time.Duration) option {
	return func(p *corev1.Pod) {
		p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-since))}}
	}
}
func notReady(p *corev1.Pod)         { p.Status.Conditions = nil }
func unbound(p *corev1.Pod)          { p.Spec.NodeName = "" }
func phase(v corev1.PodPhase) option { return func(p *corev1.Pod) { p.Status.Phase = v } }
func deleted(p *corev1.Pod)          { t := metav1.NewTime(now); p.DeletionTimestamp = &t }

func TestPlan(t *testing.T) {
	pods := []*corev1.Pod{pod("a"), pod("b"), pod("gone", deleted), pod("failed", phase(corev1.PodFailed))}
	for want, create := range map[int32]int{4: 2, 2: 0, 1000: 500} {
		d := replicaset.Plan(set(want), pods, nil, now)
		if d.Create != create || len(d.Delete) != 0 {
			t.Errorf("for %d: %+v", want, d)
		}
	}
	if d := replicaset.Plan(set(0), pods, nil, now); len(d.Delete) != 2 || d.Create != 0 {
		t.Errorf("for 0: %+v", d)
	}
}

func TestStatus(t *testing.T) {
	rs := set(4)
	rs.Spec.MinReadySeconds = 60
	rs.Spec.Template.Labels = map[string]string{"app": "web", "tier": "front"}
	full := pod("full")
	full.Labels["tier"] = "front"
	pods := []*corev1.Pod{full, pod("fresh", ready(20*time.Second)), pod("starting", notReady), pod("ending", deleted), pod("failed", phase(corev1.PodFailed))}
	s, wait := replicaset.Status(rs, pods, nil, now)
	one := int32(1)
	Same(t, "status", s, appsv1.ReplicaSetStatus{
		Replicas: 3, FullyLabeledReplicas: 1, ReadyReplicas: 2, AvailableReplicas: 1, TerminatingReplicas: &one, ObservedGeneration: 2,
	})
	if wait != 40*time.Second {
		t.Errorf("requeued after %v", wait)
	}
	s, _ = replicaset.Status(rs, pods, errors.New("quota"), now)
	if len(s.Conditions) != 1 || s.Conditions[0].Reason != "FailedCreate" || s.Conditions[0].Message != "quota" {
		t.Errorf("conditions %+v", s.Conditions)
	}
	rs.Status = s
	if s, _ = replicaset.Status(rs, pods, errors.New("other"), now); s.Conditions[0].Message != "quota" {
		t.Error("an unchanged condition was written again")
	}
	if s, _ = replicaset.Status(rs, pods, nil, now); len(s.Conditions) != 0 {
		t.Error("the condition outlived its cause")
	}
}

func counted(w *World, n int32) func() bool {
	return func() bool {
		rs := Get[*appsv1.ReplicaSet](w, "default", "web")
		return rs.Status.Replicas == n && rs.Status.ReadyReplicas == n && rs.Status.ObservedGeneration >= rs.Generation
	}
}

func TestKeepsTheNumber(t *testing.T) {
	w := Start(t)
	w.Kubelet("node-1", nil)
	w.Run(replicaset.New(w.Cluster))
	rs := Create(w, set(20))
	w.Eventually("20 pods", counted(w, 20))
	for _, p := range List[*corev1.Pod](w, "default") {
		if ref := metav1.GetControllerOf(p); ref == nil || ref.UID != rs.UID || ref.BlockOwnerDeletion == nil || !*ref.BlockOwnerDeletion {
			t.Fatalf("owner of %s: %+v", p.Name, ref)
		}
	}
	victim := List[*corev1.Pod](w, "default")[0]
	Delete[*corev1.Pod](w, "default", victim.Name)
	w.Eventually("a replacement", func() bool {
		return !Exists[*corev1.Pod](w, "default", victim.Name) && len(List[*corev1.Pod](w, "default")) == 20
	})
	five := int32(5)
	Update(w, "default", "web", func(rs *appsv1.ReplicaSet) { rs.Spec.Replicas = &five })
	w.Eventually("five pods", counted(w, 5))
	w.Never("another number", func() bool { return len(List[*corev1.Pod](w, "default")) != 5 })
}

func TestAdoptsAndReleases(t *testing.T) {
	w := Start(t)
	w.Kubelet("node-1", nil)
	stray := pod("stray", unbound, phase(""), notReady)
	stray.Namespace, stray.UID, stray.CreationTimestamp = "default", "", metav1.Time{}
	Create(w, stray)
	w.CatchUp() // A controller that sees only the set creates another pod.
	w.Run(replicaset.New(w.Cluster))
	rs := Create(w, set(1))
	w.Eventually("the adoption", func() bool {
		ref := metav1.GetControllerOf(Get[*corev1.Pod](w, "default", "stray"))
		return ref != nil && ref.UID == rs.UID
	})
	w.Never("a second pod", func() bool { return len(List[*corev1.Pod](w, "default")) != 1 })
	Update(w, "default", "stray", func(p *corev1.Pod) { p.Labels = map[string]string{"app": "mine"} })
	w.Eventually("the release and a replacement", func() bool {
		return metav1.GetControllerOf(Get[*corev1.Pod](w, "default", "stray")) == nil && len(List[*corev1.Pod](w, "default")) == 2
	})
}

// A refusal is tried again with care and shown in the status.
func TestFailureShows(t *testing.T) {
	w := Start(t)
	refused := 0
	w.Server.Admit(func(verb string, obj client.Object) error {
		if _, ok := obj.(*corev1.Pod); ok && verb == "create" {
			refused++
			return fmt.Errorf("no pods today")
		}
		return nil
	})
	w.Run(replicaset.New(w.Cluster))
	Create(w, set(100))
	w.Eventually("the condition", func() bool {
		rs := Get[*appsv1.ReplicaSet](w, "default", "web")
		return len(rs.Status.Conditions) == 1 && rs.Status.Conditions[0].Type == appsv1.ReplicaSetReplicaFailure
	})
	w.Server.Admit(nil)
	if refused > 20 {
		t.Errorf("%d pods were tried where one is refused", refused)
	}
	w.Eventually("all pods when the refusal ends", func() bool { return len(List[*corev1.Pod](w, "default")) == 100 })
	w.Eventually("the condition ends", func() bool {
		return len(Get[*appsv1.ReplicaSet](w, "default", "web").Status.Conditions) == 0
	})
}

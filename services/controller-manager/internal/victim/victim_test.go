package victim_test

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/controller-manager/internal/victim"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

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
func on(node string) option          { return func(p *corev1.Pod) { p.Spec.NodeName = node } }
func age(d time.Duration) option {
	return func(p *corev1.Pod) { p.CreationTimestamp = metav1.NewTime(now.Add(-d)) }
}
func uid(v string) option { return func(p *corev1.Pod) { p.UID = types.UID(v) } }
func restarts(n int32) option {
	return func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: n}} }
}
func cost(v string) option {
	return func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: v} }
}

func TestOrder(t *testing.T) {
	crowd := []*corev1.Pod{pod("x", on("n2")), pod("y", on("n2"))}
	tests := []struct {
		name          string
		first, second *corev1.Pod
	}{
		{"not on a node", pod("a", unbound), pod("b")},
		{"pending", pod("a", phase(corev1.PodPending)), pod("b", phase(corev1.PodUnknown))},
		{"unknown", pod("a", phase(corev1.PodUnknown)), pod("b")},
		{"not ready", pod("a", notReady), pod("b")},
		{"not ready although dear", pod("a", notReady, cost("100")), pod("b", cost("-100"))},
		{"cheap", pod("a", cost("-5")), pod("b")},
		{"cost that is none counts as 0", pod("a", cost("-1")), pod("b", cost("x"))},
		{"crowded", pod("a", on("n2")), pod("b", on("n3"))},
		{"ready for a shorter time", pod("a", ready(time.Second)), pod("b", ready(time.Hour))},
		{"ready times of one magnitude: the uid", pod("a", ready(65*time.Minute), uid("1")), pod("b", ready(61*time.Minute), uid("2"))},
		{"restarts", pod("a", restarts(3)), pod("b", restarts(1))},
		{"younger", pod("a", notReady, age(time.Minute)), pod("b", notReady, age(time.Hour))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, pods := range [][]*corev1.Pod{{tt.first, tt.second}, {tt.second, tt.first}} {
				if got := victim.Order(pods, crowd, now); got[0] != tt.first {
					t.Errorf("%s goes first", got[0].Name)
				}
			}
		})
	}
}

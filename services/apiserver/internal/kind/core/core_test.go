package core_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/kind/core"
)

func TestGracefulPod(t *testing.T) {
	graceful := core.Pod().Graceful
	seconds := func(n int64) *int64 { return &n }
	running := corev1.Pod{
		Spec:   corev1.PodSpec{NodeName: "n", TerminationGracePeriodSeconds: seconds(30)},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for name, c := range map[string]struct {
		change    func(*corev1.Pod)
		requested *int64
		want      int64
	}{
		"from its spec":        {func(*corev1.Pod) {}, nil, 30},
		"as requested":         {func(*corev1.Pod) {}, seconds(5), 5},
		"immediately":          {func(*corev1.Pod) {}, seconds(0), 0},
		"a negative period":    {func(*corev1.Pod) {}, seconds(-3), 1},
		"never scheduled":      {func(p *corev1.Pod) { p.Spec.NodeName = "" }, nil, 0},
		"succeeded":            {func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }, nil, 0},
		"failed, as requested": {func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }, seconds(9), 0},
	} {
		t.Run(name, func(t *testing.T) {
			p := running.DeepCopy()
			c.change(p)
			got, slow := graceful(p, c.requested)
			if got != c.want || slow != (c.want > 0) {
				t.Errorf("got %d, %v, want %d", got, slow, c.want)
			}
		})
	}
}

func TestNamespaceIsHeld(t *testing.T) {
	k := core.Namespace()
	n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "a"}}
	k.Rules.Default(n)
	k.Rules.PrepareCreate(n)
	if n.Labels[corev1.LabelMetadataName] != "a" || !k.Held(n) || n.Status.Phase != corev1.NamespaceActive {
		t.Fatalf("new namespace %+v", n)
	}
	k.Terminate(n)
	if n.Status.Phase != corev1.NamespaceTerminating {
		t.Errorf("phase %s", n.Status.Phase)
	}
	n.Spec.Finalizers = nil
	if k.Held(n) {
		t.Error("Held is true without finalizers")
	}
}

func TestPodFields(t *testing.T) {
	k := core.Pod()
	p := &corev1.Pod{
		Spec: corev1.PodSpec{NodeName: "n", RestartPolicy: corev1.RestartPolicyNever, HostNetwork: true, SchedulerName: "s", ServiceAccountName: "sa"},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, NominatedNodeName: "m",
			PodIPs: []corev1.PodIP{{IP: "10.0.0.1"}, {IP: "fd00::1"}}, PodIP: "10.0.0.1",
		},
	}
	for path, want := range map[string]string{
		"spec.nodeName": "n", "spec.restartPolicy": "Never", "spec.hostNetwork": "true", "spec.schedulerName": "s",
		"spec.serviceAccountName": "sa", "status.phase": "Running", "status.podIP": "10.0.0.1",
		"status.podIPs": "10.0.0.1,fd00::1", "status.nominatedNodeName": "m",
	} {
		if got := k.Fields[path](p); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
}

package pod

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestContainers(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	p := &corev1.Pod{Spec: corev1.PodSpec{
		InitContainers:      []corev1.Container{{Name: "i"}, {Name: "s", RestartPolicy: &always}},
		Containers:          []corev1.Container{{Name: "a"}, {Name: "b"}},
		EphemeralContainers: []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "e"}}},
	}}
	var got string
	for role, c := range Containers(p) {
		got += fmt.Sprintf("%s%d ", c.Name, role)
	}
	if want := "i1 s2 a0 b0 e3 "; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	for name, want := range map[string]Role{"i": Init, "s": Sidecar, "b": Regular, "e": Ephemeral} {
		if c, role := Find(p, name); c == nil || c.Name != name || role != want {
			t.Errorf("Find(%s): %+v, %d", name, c, role)
		}
	}
	if c, _ := Find(p, "x"); c != nil {
		t.Error("found a container that does not exist")
	}
}

func TestInterrupted(t *testing.T) {
	now := metav1.Now()
	p := &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &now}}
	if e := Interrupted(p); e != nil {
		t.Errorf("a running pod: %+v", e)
	}
	p.Status.Reason, p.Status.Message = "Evicted", "low on memory"
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady}, Disrupted("low")}
	e := Interrupted(p)
	if e == nil || e.Reason != "Evicted" || e.Message != "low on memory" || len(e.Conditions) != 1 || e.Grace != nil {
		t.Errorf("a pod that was being evicted: %+v", e)
	}
	p.Status.Phase = corev1.PodFailed
	if e := Interrupted(p); e != nil {
		t.Errorf("a pod that has failed: %+v", e)
	}
}

package status

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/cri"
)

// TestEphemeral checks that ephemeral containers are reported, and that they change neither
// the pod's phase nor its readiness.
func TestEphemeral(t *testing.T) {
	v := build(corev1.RestartPolicyAlways, nil, map[string]int{"a": runs})
	for _, name := range []string{"z", "d", "lost"} {
		v.Pod.Spec.EphemeralContainers = append(v.Pod.Spec.EphemeralContainers, corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: name, Image: "image"}})
	}
	v.Pod.Status.EphemeralContainerStatuses = []corev1.ContainerStatus{{Name: "lost", ContainerID: "containerd://l", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}
	v.Runtime.Containers = append(v.Runtime.Containers, cri.Container{
		ID: "d", Name: "d", SandboxID: "box", State: cri.StateExited, ExitCode: 3, CreatedAt: now, StartedAt: now, FinishedAt: now.Add(time.Second),
	})
	s := Make(v)
	if s.Phase != corev1.PodRunning || len(s.ContainerStatuses) != 1 {
		t.Errorf("phase %s, %d containers", s.Phase, len(s.ContainerStatuses))
	}
	if c := condition(&s, corev1.PodReady); c == nil || c.Status != corev1.ConditionTrue {
		t.Errorf("ready: %+v", c)
	}
	list := s.EphemeralContainerStatuses
	if len(list) != 3 || list[0].Name != "d" || list[1].Name != "lost" || list[2].Name != "z" {
		t.Fatalf("statuses: %+v", list)
	}
	if st := list[0].State.Terminated; st == nil || st.ExitCode != 3 || list[0].Ready || list[0].Started != nil {
		t.Errorf("ended: %+v", list[0])
	}
	if st := list[1].State.Terminated; st == nil || st.Reason != reasonUnknown {
		t.Errorf("lost: %+v", list[1])
	}
	if st := list[2].State.Waiting; st == nil || st.Reason != ReasonContainerCreating {
		t.Errorf("not yet started: %+v", list[2])
	}
	if got := merge(v.Pod, &s).EphemeralContainerStatuses; len(got) != 3 || got[0].Name != "d" {
		t.Errorf("written: %+v", got)
	}
}

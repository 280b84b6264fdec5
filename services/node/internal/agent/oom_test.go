package agent

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// TestOOMKilled checks that a container whose memory ran out says so, in its state and, once
// it has been restarted, in its last state.
func TestOOMKilled(t *testing.T) {
	r := newRig(t)
	greedy := func(name string, policy corev1.RestartPolicy) *corev1.Pod {
		p := simple(name, "")
		p.Spec.RestartPolicy = policy
		p.Spec.Containers[0].Command = []string{"/bin/sh", "-c", "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo unreachable"}
		p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("24Mi")}
		return r.create(p)
	}
	once, again := greedy("once", corev1.RestartPolicyNever), greedy("again", corev1.RestartPolicyAlways)
	once = r.await(once, "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if st := containerStatus(once, "main").State.Terminated; st == nil || st.Reason != "OOMKilled" || st.ExitCode != 137 {
		t.Errorf("state: %+v", st)
	}
	r.await(again, "waits after it was killed", func(p *corev1.Pod) bool {
		st := containerStatus(p, "main")
		return st.State.Waiting != nil && st.State.Waiting.Reason == "CrashLoopBackOff" &&
			st.LastTerminationState.Terminated != nil && st.LastTerminationState.Terminated.Reason == "OOMKilled"
	})
}

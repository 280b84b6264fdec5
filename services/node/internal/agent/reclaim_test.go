package agent

import (
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/pod"
)

// TestRemoveEnded checks that the containers and logs of pods that have ended are removed,
// that those of other pods are kept, and that statuses stay as they are.
func TestRemoveEnded(t *testing.T) {
	r := newRig(t)
	done, running := simple("done", "echo said; exit 3"), simple("running", "sleep 1000")
	done.Spec.RestartPolicy = corev1.RestartPolicyNever
	done, running = r.create(done), r.create(running)
	running = r.awaitReady(running)
	done = r.await(done, "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	log := r.state(done).Containers[0].LogPath
	r.until("the pod holds nothing of the node", time.Minute, func() bool { return len(r.agent.ended()) == 1 })
	if err := r.agent.RemoveEnded(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(r.state(done).Containers); n != 0 {
		t.Errorf("%d containers of the pod that has ended", n)
	}
	if _, err := os.Stat(log); !os.IsNotExist(err) {
		t.Errorf("log %s: %v", log, err)
	}
	if n := len(r.state(running).Running()); n != 1 {
		t.Errorf("%d running containers of the other pod", n)
	}
	r.agent.WakeAll() // the status is computed again
	r.update(done, func(p *corev1.Pod) { p.Labels = map[string]string{"seen": "again"} })
	after := r.await(done, "is seen again", func(p *corev1.Pod) bool { return p.Labels["seen"] == "again" })
	if got := after.Status.ContainerStatuses; after.Status.Phase != corev1.PodFailed || len(got) != 1 || got[0].State.Terminated == nil || got[0].State.Terminated.ExitCode != 3 {
		t.Errorf("status: %+v", after.Status)
	}
}

// TestAdmitUnderPressure checks that a pod that the node takes none of now fails, and that
// one that was admitted before runs on.
func TestAdmitUnderPressure(t *testing.T) {
	r := newRig(t)
	before := r.awaitReady(r.create(simple("before", "sleep 1000")))
	r.stop()
	r.admit = func(*corev1.Pod) *pod.Refusal { return &pod.Refusal{Reason: "Evicted", Message: "no room"} }
	r.start()
	after := r.create(simple("after", "sleep 1000"))
	after = r.await(after, "is refused", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if after.Status.Reason != "Evicted" || after.Status.Message != "no room" || !r.hasEvent(after, "Evicted") {
		t.Errorf("status: %+v", after.Status)
	}
	if got := r.get(before); got.Status.Phase != corev1.PodRunning {
		t.Errorf("a pod that was admitted before: %+v", got.Status)
	}
}

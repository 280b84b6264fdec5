package agent

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/internal/pacetest"
	"keelson.dev/services/node/internal/pod"
)

// TestHangingPostStart checks that a pod can be deleted and evicted while a postStart hook
// hangs, without waiting for the hook.
func TestHangingPostStart(t *testing.T) {
	r := newRig(t)
	hanging := func(name string) *corev1.Pod {
		p := simple(name, "trap 'exit 0' TERM; while true; do sleep 0.05; done")
		p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{
			Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "touch /shared/" + name + "; sleep 3600"}},
		}}
		return p
	}
	deleted, evicted := hanging("deleted"), hanging("evicted")
	for _, p := range []*corev1.Pod{deleted, evicted} {
		dir := shared(t, p)
		now := r.create(p)
		p.UID = now.UID
		r.awaitHostFile(dir + "/" + p.Name)
	}
	pace := pacetest.Start(t)
	began := time.Now()
	r.delete(deleted)
	r.awaitGone(deleted)
	over, err := r.agent.Evict(evicted.UID, pod.Ending{Reason: "Evicted"})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-over:
	case <-time.After(time.Minute):
		t.Fatalf("the evicted pod did not end\n%s", r.describe())
	}
	if given := pace.Since(began); given > 15*time.Second {
		t.Errorf("ending two pods took %v", time.Since(began))
	}
}

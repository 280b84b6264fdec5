package agent

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/pod"
	"keelson.dev/services/node/internal/volume"
)

// TestGraceSurvivesTheAgent checks that a pod that its node ends in a hurry does not get its own
// grace period when the agent is restarted meanwhile, nor does a pod whose object disappeared.
func TestGraceSurvivesTheAgent(t *testing.T) {
	runtime, _ := unavailable(t)
	dir := t.TempDir()
	began := func(ending *pod.Ending, p *corev1.Pod, record func(*worker)) time.Duration {
		t.Helper()
		a := New(Config{Node: "n", Runtime: runtime})
		a.volumes = volume.New(volume.Config{Dir: dir})
		defer a.probes.Close()
		w := newWorker(a, "p")
		w.ended = ending
		if record != nil {
			record(w)
		}
		state := &cri.Pod{Containers: []cri.Container{{ID: "c", Name: "c", State: cri.StateRunning}}}
		if _, running := w.endContainers(context.Background(), p, state); !running {
			t.Fatal("nothing runs")
		}
		defer w.stopKilling()
		return w.kill.grace
	}
	hour := int64(3600)
	now := metav1.Now()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "ns", UID: "p"},
		Spec:       corev1.PodSpec{TerminationGracePeriodSeconds: &hour},
	}
	short := 3 * time.Second
	ending := &pod.Ending{Reason: "Evicted", Message: "no room", Grace: &short}
	if got := began(ending, p.DeepCopy(), nil); got != short {
		t.Errorf("evicted with %v", got)
	}
	p.Status = corev1.PodStatus{StartTime: &now, Reason: "Evicted", Message: "no room"}
	got := began(nil, p.DeepCopy(), func(w *worker) {
		if err := w.decide(context.Background(), p); err != nil {
			t.Error(err)
		}
	})
	if got != short {
		t.Errorf("after a restart of the agent %v, want %v", got, short)
	}
	p.Status = corev1.PodStatus{}
	gone := func(w *worker) { w.remove(p, "") }
	if got := began(nil, p.DeepCopy(), gone); got != minPodGrace {
		t.Errorf("a pod that was deleted by force: %v, want %v", got, minPodGrace)
	}
	removed := func(w *worker) {
		w.uid = "0123456789abcdef0123456789abcdef"
		w.remove(p, "")
	}
	if got := began(nil, p.DeepCopy(), removed); got != time.Hour {
		t.Errorf("a static pod whose manifest was removed: %v, want %v", got, time.Hour)
	}
	if got := began(nil, nil, nil); got != minPodGrace {
		t.Errorf("a pod that was deleted by force while no agent ran: %v, want %v", got, minPodGrace)
	}
}

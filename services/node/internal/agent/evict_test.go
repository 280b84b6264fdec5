package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/node/internal/pod"
)

func disruption(p *corev1.Pod) string {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue {
			return c.Reason
		}
	}
	return ""
}

// TestEvict checks that an eviction's reason is in the status before the containers end,
// that a restarted agent continues with it, and that a shorter grace period takes over.
func TestEvict(t *testing.T) {
	r := newRig(t)
	p := simple("evicted", "trap 'touch /shared/asked' TERM; until test -e /shared/go; do sleep 0.05; done")
	hour := int64(3600)
	p.Spec.TerminationGracePeriodSeconds = &hour
	dir := shared(t, p)
	stubborn := simple("stubborn", "trap '' TERM; touch /tmp/up; while true; do sleep 0.1; done")
	stubborn.Spec.TerminationGracePeriodSeconds = &hour
	p, stubborn = r.create(p), r.create(stubborn)
	p, stubborn = r.awaitReady(p), r.awaitReady(stubborn)
	r.awaitFile(stubborn, "main", "/tmp/up")
	if n := len(r.agent.Active()); n != 2 {
		t.Errorf("%d active pods, want 2", n)
	}
	if _, err := r.agent.Evict(types.UID("unknown"), pod.Ending{Reason: "Evicted"}); err == nil {
		t.Error("a pod that the node does not have was evicted")
	}

	e := pod.Ending{Reason: "Evicted", Message: "the node was low on resource: memory", Conditions: []corev1.PodCondition{pod.Disrupted("low on memory")}}
	if _, err := r.agent.Evict(p.UID, e); err != nil {
		t.Fatal(err)
	}
	r.awaitHostFile(filepath.Join(dir, "asked"))
	p = r.get(p)
	if p.Status.Reason != "Evicted" || disruption(p) != corev1.PodReasonTerminationByKubelet || p.Status.Phase != corev1.PodRunning {
		t.Errorf("while the container ends: %s %s %q", p.Status.Phase, p.Status.Reason, disruption(p))
	}
	r.stop()
	r.start()
	r.until("the new agent has the pods", time.Minute, func() bool { return len(r.agent.Active()) == 2 })
	// From now on, an agent that had forgotten the eviction would restart the container.
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	p = r.await(p, "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if p.Status.Reason != "Evicted" || p.Status.Message != e.Message || disruption(p) != corev1.PodReasonTerminationByKubelet {
		t.Errorf("after the end: %s %q %q", p.Status.Reason, p.Status.Message, disruption(p))
	}

	none := time.Duration(0)
	over, err := r.agent.Evict(stubborn.UID, pod.Ending{Reason: "Terminated", Message: "first"})
	if err != nil {
		t.Fatal(err)
	}
	r.await(stubborn, "has a reason", func(p *corev1.Pod) bool { return p.Status.Reason == "Terminated" })
	if _, err := r.agent.Evict(stubborn.UID, pod.Ending{Reason: "Evicted", Grace: &none}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-over:
	case <-time.After(time.Minute):
		t.Fatalf("the pod did not end\n%s", r.describe())
	}
	stubborn = r.await(stubborn, "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if stubborn.Status.Reason != "Terminated" || stubborn.Status.Message != "first" {
		t.Errorf("the second eviction replaced the first's reason: %s %q", stubborn.Status.Reason, stubborn.Status.Message)
	}
	if n := len(r.agent.Active()); n != 0 {
		t.Errorf("%d active pods after all have ended", n)
	}
}

// TestEvictWithoutAPI checks that a pod ends although its status cannot be written.
func TestEvictWithoutAPI(t *testing.T) {
	r := newRig(t)
	p := r.awaitReady(r.create(simple("cut-off", forever)))
	r.server.Fail(func(method string, _ *resourcev1.Ref) error {
		if method == "Commit" {
			return status.Error(codes.Unavailable, "cut off")
		}
		return nil
	})
	over, err := r.agent.Evict(p.UID, pod.Ending{Reason: "NodeLost", Message: "the node has lost its lease"})
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-over:
	case <-time.After(time.Minute):
		t.Fatal("the pod did not end")
	}
	r.server.Fail(nil)
	r.await(p, "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed && p.Status.Reason == "NodeLost" })
}

package status

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/pod"
)

// TestEndingConditions checks that the condition of an eviction by the node replaces
// another's, stays, and is not removed when the node has none of its own.
func TestEndingConditions(t *testing.T) {
	v := build(corev1.RestartPolicyAlways, nil, map[string]int{"a": runs})
	other := corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI"}
	v.Pod.Status.Conditions = []corev1.PodCondition{other}
	s := Make(v)
	merged := merge(v.Pod, &s)
	if c := condition(merged, corev1.DisruptionTarget); c == nil || c.Reason != other.Reason {
		t.Errorf("another writer's condition: %+v", c)
	}
	v.Ended = &pod.Ending{Reason: "Evicted", Conditions: []corev1.PodCondition{pod.Disrupted("low on memory")}}
	s = Make(v)
	merged = merge(v.Pod, &s)
	c := condition(merged, corev1.DisruptionTarget)
	if c == nil || c.Reason != corev1.PodReasonTerminationByKubelet || c.Message != "low on memory" || c.ObservedGeneration != v.Pod.Generation {
		t.Fatalf("the node's condition: %+v", c)
	}
	n := 0
	for _, c := range merged.Conditions {
		if c.Type == corev1.DisruptionTarget {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d conditions DisruptionTarget", n)
	}
	v.Pod.Status = *merged
	at := c.LastTransitionTime
	v.Now = v.Now.Add(time.Hour)
	s = Make(v)
	if c := condition(merge(v.Pod, &s), corev1.DisruptionTarget); c == nil || !c.LastTransitionTime.Equal(&at) {
		t.Errorf("an hour later: %+v", c)
	}
}

// TestWritten checks that waiters are woken by the write, and by the pod's end.
func TestWritten(t *testing.T) {
	r := newWriterRig(t)
	select {
	case <-r.w.Written("nobody"):
	case <-time.After(time.Minute):
		t.Fatal("waiting for a pod without a status")
	}
	p := r.create("a")
	hold := make(chan struct{})
	r.api.set(func() { r.api.hold = hold })
	r.w.Set(p, &corev1.PodStatus{Phase: corev1.PodRunning}, "")
	written := r.w.Written(p.UID)
	select {
	case <-written:
		t.Fatal("woken before the write")
	default:
	}
	close(hold)
	for _, c := range []<-chan struct{}{written, r.w.Written(p.UID)} {
		select {
		case <-c:
		case <-time.After(time.Minute):
			t.Fatal("the write woke nobody")
		}
	}
	r.api.set(func() { r.api.hold = make(chan struct{}) })
	r.w.Set(p, &corev1.PodStatus{Phase: corev1.PodFailed}, "")
	gone := r.w.Written(p.UID)
	r.w.Forget(p.UID)
	select {
	case <-gone:
	case <-time.After(time.Minute):
		t.Fatal("the pod's end woke nobody")
	}
	r.api.set(func() { close(r.api.hold) })
}

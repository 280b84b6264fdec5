package event_test

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	"keelson.dev/services/internal/event"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestWritesAndCounts(t *testing.T) {
	c := clienttest.Start(t)
	r := event.NewRecorder(c, "tester", "tester-0")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", UID: "1"}}
	for range 3 {
		r.Warning(ctx, pod, "BackOff", "waited %d s", 5)
	}
	r.Normal(ctx, pod, "Started", "at last")
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		events, _, err := client.For[*corev1.Event](c).List(ctx, client.ListOptions{Namespace: "default"})
		if err != nil {
			t.Fatal(err)
		}
		counts := map[string]int32{}
		for _, e := range events {
			counts[e.Reason] = e.Count
			if e.InvolvedObject.Kind != "Pod" || e.InvolvedObject.UID != "1" || e.Source.Component != "tester" {
				t.Fatalf("event: %+v", e)
			}
		}
		if len(events) == 2 && counts["BackOff"] == 3 && counts["Started"] == 1 {
			break
		}
		select {
		case <-deadline:
			t.Fatalf("events: %v", counts)
		case <-tick.C:
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNeverWaits(t *testing.T) {
	r := event.NewRecorder(clienttest.Start(t), "tester", "tester-0")
	for range 2000 {
		r.Normal(t.Context(), &corev1.Pod{}, "Reason", "nobody reads")
	}
	if r.Dropped() == 0 {
		t.Error("nothing was dropped")
	}
}

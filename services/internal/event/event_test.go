package event_test

import (
	"context"
	"maps"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clienttest"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
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
	deadline := time.After(time.Minute)
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
		r.Normal(t.Context(), &corev1.Pod{}, "Reason", "not sent")
	}
	if r.Dropped() == 0 {
		t.Error("nothing was dropped")
	}
}

// Events carry the epoch of the leader that recorded them, even if they are written together with
// those of another epoch; Flush waits for them.
func TestEventsAreFenced(t *testing.T) {
	s, c := clienttest.StartServer(t)
	var mu sync.Mutex
	got := map[string]int{} // by fence
	s.Wrote(func(w clienttest.Written) {
		mu.Lock()
		defer mu.Unlock()
		got[w.Fence] += len(w.Request.(*resourcev1.CommitRequest).GetWrites())
	})
	r := event.NewRecorder(c, "tester", "tester-0")
	lost := map[string]bool{}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "a", UID: "1"}}
	for i, token := range []string{"", "ns/a 1", "ns/a 2", "ns/a 2", ""} {
		ctx := t.Context()
		if token != "" {
			ctx = client.WithFence(ctx, &client.Fence{Token: token, Lost: func() { lost[token] = true }})
		}
		r.Normal(ctx, pod, "Reason", "event %d", i)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	want := map[string]int{"": 2, "ns/a 1": 1, "ns/a 2": 2}
	written := func() bool {
		mu.Lock()
		defer mu.Unlock()
		return maps.Equal(got, want)
	}
	began := time.Now()
	r.Flush()
	// Flush gives up after 300 ms, so it may return early if the machine stalled that long.
	if took := time.Since(began); !written() && took < 300*time.Millisecond {
		t.Errorf("Flush returned after %s with events unwritten", took)
	}
	for deadline := time.Now().Add(time.Minute); !written() && time.Now().Before(deadline); {
		<-time.After(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !maps.Equal(got, want) {
		t.Errorf("events by fence: %v, want %v", got, want)
	}
	if !lost["ns/a 1"] || !lost["ns/a 2"] {
		t.Errorf("events of epochs that are not current were not refused: %v", lost)
	}
}

package agent

import (
	"context"
	"testing"
	"time"
)

// TestCheckNoticesAHang checks that an agent of which a lock is never released is not healthy.
func TestCheckNoticesAHang(t *testing.T) {
	runtime, _ := unavailable(t)
	a := New(Config{Node: "n", Runtime: runtime})
	a.progress.Patience = time.Millisecond
	w := newWorker(a, "p")
	a.workers["p"] = w
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	w.mu.Lock()
	go func() { done <- a.watchLocks(ctx) }()
	until := func(what string, ok func() bool) {
		t.Helper()
		deadline := time.After(time.Minute)
		for tick := time.NewTicker(time.Millisecond); !ok(); {
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatal("timed out waiting until it " + what)
			}
		}
	}
	until("is not healthy", func() bool { return a.Check(ctx) != nil })
	w.mu.Unlock()
	until("is healthy again", func() bool { return a.Check(ctx) == nil })
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	a.probes.Close()
}

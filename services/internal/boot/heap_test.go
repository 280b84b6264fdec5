package boot

import (
	"runtime"
	"slices"
	"testing"
	"time"
)

func TestHeapIsPacedByTheTimeBetweenCollections(t *testing.T) {
	now := time.Unix(1e9, 0)
	var sets []int
	p := &pacer{last: now, percent: busyPercent, set: func(percent int) { sets = append(sets, percent) }}
	for _, step := range []struct {
		since time.Duration
		want  int
	}{
		{100 * time.Millisecond, busyPercent}, // starting
		{5 * time.Second, busyPercent},        // neither
		{40 * time.Second, restPercent},
		{20 * time.Second, restPercent},
		{5 * time.Second, restPercent}, // neither
		{time.Second, busyPercent},     // a burst is met at its second collection
		{time.Second, busyPercent},
		{2 * time.Minute, restPercent}, // Go collects at least so often
	} {
		now = now.Add(step.since)
		p.collected(now)
		if p.percent != step.want {
			t.Errorf("%s after the last collection: %d percent, want %d", step.since, p.percent, step.want)
		}
	}
	if want := []int{restPercent, busyPercent, restPercent}; !slices.Equal(sets, want) {
		t.Errorf("set to %v, want %v: nothing is set that is so already", sets, want)
	}
}

// Every collection is seen, not the first alone.
func TestCollectionsAreSeen(t *testing.T) {
	seen := make(chan int, 8)
	p := &pacer{percent: busyPercent, set: func(percent int) { seen <- percent }}
	defer p.stopped.Store(true)
	p.watch()                                      // the first collection is decades after the zero time
	again := time.NewTicker(10 * time.Millisecond) // one that comes before the next sentinel is not seen
	defer again.Stop()
	end := time.After(10 * time.Second)
	for i, want := range []int{restPercent, busyPercent} {
		for waiting := true; waiting; {
			runtime.GC()
			select {
			case got := <-seen:
				if waiting = false; got != want {
					t.Errorf("change %d is to %d percent, want %d", i, got, want)
				}
			case <-again.C:
			case <-end:
				t.Fatalf("change %d does not come", i)
			}
		}
	}
}

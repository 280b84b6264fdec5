package boot

import (
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"
)

// A process that does not collect comes to rest; two collections in short order
// make it a busy one, as often as that happens.
func TestHeapIsPacedByTheTimeBetweenCollections(t *testing.T) {
	sets := make(chan int, 8)
	var released atomic.Int32
	p := newPacer(50*time.Millisecond, 40*time.Millisecond, heap{
		live: func() uint64 { return smallHeap }, set: func(percent int) { sets <- percent }, release: func() { released.Add(1) },
	})
	defer p.stop()
	next := func(meanwhile func()) int {
		t.Helper()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		end := time.After(time.Minute)
		for {
			select {
			case percent := <-sets:
				return percent
			case <-tick.C:
				meanwhile()
			case <-end:
				t.Fatal("the pace is not changed")
			}
		}
	}
	nothing := func() {}
	for range 2 {
		if got := next(nothing); got != restPercent {
			t.Fatalf("at rest: %d percent, want %d", got, restPercent)
		}
		if got := next(runtime.GC); got != busyPercent {
			t.Fatalf("collecting all the time: %d percent, want %d", got, busyPercent)
		}
	}
	if released.Load() == 0 {
		t.Error("no memory was returned at rest")
	}
}

// Collections that are neither close to each other nor far apart change nothing.
func TestHeapPaceIsSteady(t *testing.T) {
	var sets []int
	live := uint64(smallHeap)
	now := time.Now()
	p := &pacer{restAfter: time.Hour, busyBelow: 3 * time.Second, percent: restPercent, last: now,
		rest: time.NewTimer(time.Hour), heap: heap{live: func() uint64 { return live }, set: func(percent int) { sets = append(sets, percent) }}}
	defer p.stop()
	for range 5 {
		now = now.Add(5 * time.Second)
		p.collected(now)
	}
	if len(sets) > 0 {
		t.Errorf("set to %v although nothing changed", sets)
	}
	for range 2 {
		now = now.Add(time.Second)
		p.collected(now)
	}
	if len(sets) != 1 || sets[0] != busyPercent {
		t.Errorf("set to %v by a burst, want %d once", sets, busyPercent)
	}
	for _, live = range []uint64{largeHeap, hugeHeap, smallHeap, smallHeap - 1} {
		now = now.Add(time.Second)
		p.collected(now)
	}
	if want := []int{busyPercent, largePercent, hugePercent, busyPercent, smallPercent}; !slices.Equal(sets, want) {
		t.Errorf("set to %v as the heap grew and shrank, want %v", sets, want)
	}
}

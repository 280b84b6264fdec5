package boot

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"
)

// By how many percent the heap may grow beyond the live objects before it is collected. An
// idle process collects seldom, so it can afford to collect twice as often and uses a
// quarter less memory; a busy one keeps Go's own default, unless its heap is small or large.
const (
	restPercent = 50
	busyPercent = 100
	// restAfter is the time without a collection after which a process is idle, until two
	// collections are less than busyBelow apart.
	restAfter = 10 * time.Second
	busyBelow = 3 * time.Second
)

// Percentages of busy processes with small and large heaps, in bytes of live objects. A small
// heap is collected half as often for at most 32 MB more. With 5,000 nodes and 10,000 pods the
// control plane takes a tenth less memory for 5 % more CPU time.
const (
	smallHeap, smallPercent = 32 << 20, 200
	largeHeap, largePercent = 96 << 20, 75
	hugeHeap, hugePercent   = 192 << 20, 50
)

// busy returns the percentage of a busy process.
func busy(live uint64) int {
	switch {
	case live < smallHeap:
		return smallPercent
	case live < largeHeap:
		return busyPercent
	case live < hugeHeap:
		return largePercent
	}
	return hugePercent
}

// paceHeap starts to adapt the garbage collector's target, unless GOGC sets it.
func paceHeap() {
	if os.Getenv("GOGC") == "" {
		newPacer(restAfter, busyBelow, heap{live: liveHeap, set: func(percent int) { debug.SetGCPercent(percent) }, release: debug.FreeOSMemory})
	}
}

// liveHeap returns the bytes that the last collection found in use.
func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// heap is the part of the runtime that a pacer reads and sets.
type heap struct {
	live func() uint64
	set  func(percent int)
	// release returns unused memory to the operating system.
	release func()
}

// pacer sets the collector's target from the time between collections.
type pacer struct {
	restAfter, busyBelow time.Duration
	heap                 heap

	mu      sync.Mutex
	percent int
	resting bool
	last    time.Time
	rest    *time.Timer // fires restAfter after the last collection
	stopped bool
}

func newPacer(restAfter, busyBelow time.Duration, h heap) *pacer {
	p := &pacer{restAfter: restAfter, busyBelow: busyBelow, heap: h, percent: busyPercent, last: time.Now()}
	// After a burst, its garbage would stay until the heap had grown to twice the burst's
	// size, or for the two minutes after which Go collects in any case, and the scavenger
	// would leave a tenth of it.
	p.rest = time.AfterFunc(restAfter, p.atRest)
	p.watch()
	return p
}

// watch allocates an unreachable object whose finalizer reports the next collection.
func (p *pacer) watch() {
	sentinel := new([32]byte) // too large for the tiny allocator, which would batch it with others
	runtime.SetFinalizer(sentinel, func(*[32]byte) {
		if p.collected(time.Now()) {
			p.watch()
		}
	})
}

// collected records a collection. It returns false if the pacer has been stopped.
func (p *pacer) collected(now time.Time) bool {
	p.mu.Lock()
	since := now.Sub(p.last)
	p.last = now
	stopped := p.stopped
	if !stopped {
		p.rest.Reset(p.restAfter)
	}
	p.mu.Unlock()
	if since < p.busyBelow {
		p.to(busy(p.heap.live()), false)
	}
	return !stopped
}

// atRest collects the garbage of a burst, returns its memory, and then lowers the percentage:
// in this order, because two collections in a row would look like a busy process.
func (p *pacer) atRest() {
	p.mu.Lock()
	again := p.resting || p.stopped
	p.mu.Unlock()
	if !again {
		p.heap.release()
		p.to(restPercent, true)
	}
}

func (p *pacer) to(percent int, resting bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped || p.percent == percent && p.resting == resting {
		return
	}
	p.percent, p.resting = percent, resting
	p.heap.set(percent)
}

// stop ends the adaptation and leaves the target as it is.
func (p *pacer) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	p.rest.Stop()
}

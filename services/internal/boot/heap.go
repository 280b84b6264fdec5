package boot

import (
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// How far Go's heap may grow over what lives before it is collected, in percent.
// A process at rest collects seldom, so that it can afford to collect twice as
// often and takes a quarter less; a busy one gets Go's own default.
const (
	restPercent = 50
	busyPercent = 100
	// Two collections further apart than restAfter are those of a process at rest,
	// closer than busyBelow those of a busy one.
	restAfter = 10 * time.Second
	busyBelow = 3 * time.Second
)

// paceHeap sets the garbage collector's pace after each collection, unless the
// environment does (GOGC).
func paceHeap() {
	if os.Getenv("GOGC") != "" {
		return
	}
	p := &pacer{last: time.Now(), percent: busyPercent, set: func(percent int) { debug.SetGCPercent(percent) }}
	p.watch()
}

// pacer decides, from the time between collections. The sentinel's cleanup calls
// it after each, one at a time.
type pacer struct {
	last    time.Time
	percent int
	set     func(percent int)
	stopped atomic.Bool // for tests
}

// watch makes an object that nothing holds, so that the next collection finds it.
func (p *pacer) watch() {
	sentinel := new([32]byte) // too large for the allocator to join it with others
	runtime.SetFinalizer(sentinel, func(*[32]byte) {
		if p.stopped.Load() {
			return
		}
		p.collected(time.Now())
		p.watch()
	})
}

// collected notes a collection.
func (p *pacer) collected(now time.Time) {
	since := now.Sub(p.last)
	p.last = now
	want := p.percent
	switch {
	case since >= restAfter:
		want = restPercent
	case since < busyBelow:
		want = busyPercent
	}
	if want != p.percent {
		p.percent = want
		p.set(want)
	}
}

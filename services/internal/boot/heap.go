package boot

import (
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

// How far Go's heap may grow over what lives before it is collected, in percent.
// A process at rest collects seldom, so that it can afford to collect twice as
// often and takes a quarter less; a busy one gets Go's own default.
const (
	restPercent = 50
	busyPercent = 100
	// A process that has not collected for restAfter is at rest, until two
	// collections are less than busyBelow apart.
	restAfter = 10 * time.Second
	busyBelow = 3 * time.Second
)

// paceHeap sets the garbage collector's pace, unless the environment does (GOGC).
func paceHeap() {
	if os.Getenv("GOGC") == "" {
		newPacer(restAfter, busyBelow, func(percent int) { debug.SetGCPercent(percent) })
	}
}

// pacer sets the pace by the time between collections.
type pacer struct {
	restAfter, busyBelow time.Duration
	set                  func(percent int)

	mu      sync.Mutex
	percent int
	last    time.Time
	rest    *time.Timer // restAfter since the last collection
	stopped bool
}

func newPacer(restAfter, busyBelow time.Duration, set func(percent int)) *pacer {
	p := &pacer{restAfter: restAfter, busyBelow: busyBelow, set: set, percent: busyPercent, last: time.Now()}
	// What a burst left behind would stay until the heap had grown to twice the
	// burst's, or for the two minutes after which Go collects in any case: a lower
	// percentage collects it at once.
	p.rest = time.AfterFunc(restAfter, func() { p.to(restPercent) })
	p.watch()
	return p
}

// watch makes an object that nothing holds, so that the next collection finds it.
func (p *pacer) watch() {
	sentinel := new([32]byte) // too large for the allocator to join it with others
	runtime.SetFinalizer(sentinel, func(*[32]byte) {
		if p.collected(time.Now()) {
			p.watch()
		}
	})
}

// collected notes a collection; it returns false when the pacer has been stopped.
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
		p.to(busyPercent)
	}
	return !stopped
}

func (p *pacer) to(percent int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped || p.percent == percent {
		return
	}
	p.percent = percent
	p.set(percent)
}

// stop leaves the pace as it is.
func (p *pacer) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	p.rest.Stop()
}

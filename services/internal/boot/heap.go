package boot

import (
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"
)

// By how many percent the heap may grow beyond the live objects before it is collected. An
// idle process collects seldom, so it can afford to collect twice as often and uses a
// quarter less memory; a busy one keeps Go's own default.
const (
	restPercent = 50
	busyPercent = 100
	// restAfter is the time without a collection after which a process is idle, until two
	// collections are less than busyBelow apart.
	restAfter = 10 * time.Second
	busyBelow = 3 * time.Second
)

// paceHeap starts to adapt the garbage collector's target, unless GOGC sets it.
func paceHeap() {
	if os.Getenv("GOGC") == "" {
		newPacer(restAfter, busyBelow, func(percent int) { debug.SetGCPercent(percent) })
	}
}

// pacer sets the collector's target from the time between collections.
type pacer struct {
	restAfter, busyBelow time.Duration
	set                  func(percent int)

	mu      sync.Mutex
	percent int
	last    time.Time
	rest    *time.Timer // fires restAfter after the last collection
	stopped bool
}

func newPacer(restAfter, busyBelow time.Duration, set func(percent int)) *pacer {
	p := &pacer{restAfter: restAfter, busyBelow: busyBelow, set: set, percent: busyPercent, last: time.Now()}
	// After a burst, its garbage would stay until the heap had grown to twice the burst's
	// size, or for the two minutes after which Go collects in any case: lowering the
	// percentage collects it at once.
	p.rest = time.AfterFunc(restAfter, func() { p.to(restPercent) })
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

// stop ends the adaptation and leaves the target as it is.
func (p *pacer) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	p.rest.Stop()
}

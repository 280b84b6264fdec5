package controller

import (
	"sync"
	"time"
)

// maxLinks bounds the coalesced writes that a reconcile links to.
const maxLinks = 16

// maxTraceAge is how long a key keeps its trace over retries and requeues. Later reconciles
// are no longer a consequence of that write alone.
const maxTraceAge = 15 * time.Minute

// entry is a key that waits, runs, or has failed.
type entry struct {
	key Key
	// queued is true while the key is in the FIFO, running while it is reconciled, and
	// again if it was enqueued meanwhile.
	queued, running, again bool
	failures               int
	// traces are the causes since the last start, of which the first is the parent; at is
	// the time of the first.
	traces []string
	at     time.Time
	since  time.Time // of the present wait
	// timer is set while the key is delayed; delays counts its delays.
	timer  *time.Timer
	delays uint64
}

func (e *entry) cause(traceparent string, now time.Time) {
	if traceparent == "" || len(e.traces) > maxLinks {
		return
	}
	for _, t := range e.traces {
		if t == traceparent {
			return
		}
	}
	if len(e.traces) == 0 {
		e.at = now
	}
	e.traces = append(e.traces, traceparent)
}

// queue holds each key once. A key that is added while it is reconciled waits until that
// has ended.
type queue struct {
	mu      sync.Mutex
	room    *sync.Cond
	entries map[Key]*entry
	fifo    []*entry
	head    int
	max     int
	closed  bool
	// wake is called, with mu held, for each key that becomes ready.
	wake func()
	full func()
	// extend, if set, is called, without mu, for a key whose requeue is due.
	extend func(Key) time.Duration
}

func newQueue(limit int, wake, full func()) *queue {
	q := &queue{entries: map[Key]*entry{}, max: limit, wake: wake, full: full}
	q.room = sync.NewCond(&q.mu)
	return q
}

func (q *queue) length() int { return len(q.fifo) - q.head }

// add appends a key, and waits first while the queue is full.
func (q *queue) add(key Key, traceparent string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if e := q.entries[key]; e == nil || !e.queued && !e.running {
		for q.length() >= q.max && !q.closed {
			q.full()
			q.room.Wait()
		}
	}
	if q.closed {
		return
	}
	now := time.Now()
	e := q.entries[key]
	if e == nil {
		e = &entry{key: key}
		q.entries[key] = e
	}
	e.cause(traceparent, now)
	switch {
	case e.running:
		e.again = true
	case !e.queued:
		q.push(e, now)
	}
}

// push makes an entry ready; mu is held.
func (q *queue) push(e *entry, now time.Time) {
	if e.timer != nil {
		e.timer.Stop()
		e.timer = nil
	}
	e.queued, e.since = true, now
	if q.head > len(q.fifo)/2 && q.head > 64 {
		n := copy(q.fifo, q.fifo[q.head:])
		clear(q.fifo[n:])
		q.fifo, q.head = q.fifo[:n], 0
	}
	q.fifo = append(q.fifo, e)
	q.wake()
}

// job is a key to reconcile, with its causes.
type job struct {
	entry  *entry
	traces []string
	at     time.Time
	waited time.Duration
	tries  int
}

// next removes the first ready key; ok is false if there is none. mu is held.
func (q *queue) next() (j job, ok bool) {
	if q.closed || q.length() == 0 {
		return job{}, false
	}
	e := q.fifo[q.head]
	q.fifo[q.head] = nil
	q.head++
	if q.head == len(q.fifo) {
		// Free the memory that a burst took.
		if cap(q.fifo) > 1024 {
			q.fifo = nil
		}
		q.fifo, q.head = q.fifo[:0], 0
	}
	q.room.Signal()
	e.queued, e.running = false, true
	j = job{entry: e, traces: e.traces, at: e.at, waited: time.Since(e.since), tries: e.failures}
	e.traces = nil
	return j, true
}

// done ends a reconcile. If retry is not 0, the key is added again after that time, with
// its trace.
func (q *queue) done(j job, failed bool, retry time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	e, now := j.entry, time.Now()
	e.running = false
	if failed {
		e.failures++
	} else {
		e.failures = 0
	}
	if q.closed {
		return
	}
	if (failed || retry > 0) && len(j.traces) > 0 && now.Sub(j.at) < maxTraceAge {
		e.traces, e.at = append(j.traces[:1:1], e.traces...), j.at
	}
	switch {
	case e.again && !failed:
		e.again = false
		q.push(e, now)
	case failed || retry > 0:
		e.again = false
		q.delay(e, retry, !failed)
	default:
		delete(q.entries, e.key)
	}
}

// delay adds a key again after a time, which extend may prolong if the delay is
// extensible. mu is held.
func (q *queue) delay(e *entry, after time.Duration, extensible bool) {
	e.delays++
	nth := e.delays
	e.timer = time.AfterFunc(after, func() { q.ripe(e, nth, extensible) })
}

// ripe makes a key ready whose nth delay has passed, unless the delay is extended or the
// key has been added since.
func (q *queue) ripe(e *entry, nth uint64, extensible bool) {
	var longer time.Duration
	if extensible && q.extend != nil {
		longer = q.extend(e.key)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed || e.timer == nil || e.delays != nth:
	case longer > 0:
		e.timer.Reset(longer)
	default:
		q.push(e, time.Now())
	}
}

// close drops all keys and ends all waits.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	for _, e := range q.entries {
		if e.timer != nil {
			e.timer.Stop()
		}
	}
	q.room.Broadcast()
}

// Package queue holds the pods that wait for a node: active pods by priority and age,
// pods in backoff after an attempt, unschedulable pods that wait for an event that may
// help, and gated pods.
//
// It must never lose a pod: every pod that was added is in exactly one place until it
// is popped or deleted. A queue belongs to one goroutine.
package queue

import (
	"container/heap"
	"strconv"
	"strings"
	"time"

	"keelson.dev/services/scheduler/internal/state"
)

// Durations of the backoff and the last resort, as in Kubernetes' scheduler.
const (
	firstBackoff = time.Second
	mostBackoff  = 10 * time.Second
	// lastResort is how long a pod stays aside if no event helps.
	lastResort = 5 * time.Minute
)

// place is where an item is.
type place uint8

const (
	out     place = iota // not in the queue
	active               // ready to be popped
	backoff              // not before Item.until
	aside                // refused; waits for an event that helps, or lastResort
	gated                // has scheduling gates
)

// Item is a waiting pod.
type Item struct {
	Pod *state.Pod
	// Traceparent is that of the write that created the pod.
	Traceparent string
	// Added is when the pod was added; Attempts is how often it was tried.
	Added    time.Time
	Attempts int
	// Message is the result of the last attempt, and Plugins are those that refused.
	Message string
	Plugins []string

	group  string    // its group in Queue.asides, since it was last refused
	since  time.Time // when it became active: the order among equal priorities
	number uint64    // the order among equal times
	until  time.Time // the end of its backoff
	failed bool      // the last attempt failed for another reason than a refusal
	place  place
	index  int // in the heap of its place
	early  int // in Queue.early; -1 outside
}

// Key names the pod.
func (it *Item) Key() state.Key { return state.Key{Namespace: it.Pod.Namespace, Name: it.Pod.Name} }

// Queue holds items.
type Queue struct {
	now     func() time.Time
	items   map[state.Key]*Item
	active  prioritized
	backoff timed
	// early holds the pods in backoff that were refused, not failed: they are popped
	// before their time when no other pod waits.
	early earlier
	// asides holds the refused pods, grouped by those that are alike.
	asides map[string]*group
	number uint64
}

// group is a set of pods that are alike, have the same priority and were refused by the
// same plugins.
type group struct {
	items map[*Item]struct{}
	first *Item
}

// New returns an empty queue; now is the clock.
func New(now func() time.Time) *Queue {
	return &Queue{now: now, items: map[state.Key]*Item{}, asides: map[string]*group{}}
}

// Len returns the number of pods in each place.
func (q *Queue) Len() (activeN, backoffN, asideN, gatedN int) {
	for _, it := range q.items {
		switch it.place {
		case active:
			activeN++
		case backoff:
			backoffN++
		case aside:
			asideN++
		case gated:
			gatedN++
		}
	}
	return
}

// Get returns a waiting pod.
func (q *Queue) Get(key state.Key) (*Item, bool) {
	it, ok := q.items[key]
	return it, ok
}

// Add adds a pod, or updates it. changed reports whether it differs in a way that may
// matter to plugins; if not, the pod stays in its place.
func (q *Queue) Add(p *state.Pod, traceparent string, changed bool) {
	key := state.Key{Namespace: p.Namespace, Name: p.Name}
	it := q.items[key]
	if it != nil && it.Pod.UID != p.UID {
		q.Delete(key)
		it = nil
	}
	if it == nil {
		now := q.now()
		q.number++
		it = &Item{Pod: p, Traceparent: traceparent, Added: now, since: now, number: q.number, early: -1}
		q.items[key] = it
		q.enqueue(it)
		return
	}
	it.Pod = p
	if !changed {
		return
	}
	q.leave(it)
	q.enqueue(it)
}

// enqueue puts an item that has no place into the gated, backoff or active one.
func (q *Queue) enqueue(it *Item) {
	switch now := q.now(); {
	case len(it.Pod.Object.Spec.SchedulingGates) > 0:
		it.place = gated
	case it.until.After(now):
		it.place = backoff
		heap.Push(&q.backoff, it)
		if !it.failed {
			heap.Push(&q.early, it)
		}
	default:
		it.since = now
		it.place = active
		heap.Push(&q.active, it)
	}
}

// leave removes an item from its place.
func (q *Queue) leave(it *Item) {
	switch it.place {
	case active:
		heap.Remove(&q.active, it.index)
	case backoff:
		heap.Remove(&q.backoff, it.index)
		if it.early >= 0 {
			heap.Remove(&q.early, it.early)
		}
	case aside:
		g := q.asides[it.group]
		delete(g.items, it)
		if len(g.items) == 0 {
			delete(q.asides, it.group)
		} else if g.first == it {
			for other := range g.items {
				g.first = other
				break
			}
		}
	}
	it.place = out
}

// Delete removes a pod from any place.
func (q *Queue) Delete(key state.Key) {
	if it := q.items[key]; it != nil {
		q.leave(it)
		delete(q.items, key)
	}
}

// Pop removes and returns the next pod, or nil if none is due. Refused or Retry returns
// the pod to the queue.
func (q *Queue) Pop() *Item {
	now := q.now()
	for q.backoff.Len() > 0 && !q.backoff.items[0].until.After(now) {
		it := q.backoff.items[0]
		q.leave(it)
		it.since = it.until
		it.place = active
		heap.Push(&q.active, it)
	}
	var it *Item
	switch {
	case q.active.Len() > 0:
		it = q.active.items[0]
	case q.early.Len() > 0:
		it = q.early.items[0]
	default:
		return nil
	}
	q.leave(it)
	it.Attempts++
	delete(q.items, it.Key())
	return it
}

// Next returns when Pop will return a pod if the queue does not change before, or false
// if it will not.
func (q *Queue) Next() (time.Time, bool) {
	if q.active.Len() > 0 {
		return q.now(), true
	}
	if q.backoff.Len() > 0 {
		return q.backoff.items[0].until, true
	}
	return time.Time{}, false
}

func (it *Item) delay() time.Duration {
	return min(firstBackoff<<min(it.Attempts-1, 10), mostBackoff)
}

// Refused returns to the queue a pod that plugins refused on every node. class is the
// same for pods that are alike.
func (q *Queue) Refused(it *Item, class, message string, plugins []string) {
	it.Message, it.Plugins, it.failed = message, plugins, false
	it.group = class + "\x00" + strconv.Itoa(int(it.Pod.Priority)) + "\x00" + strings.Join(plugins, ",")
	it.until = q.now().Add(it.delay())
	q.items[it.Key()] = it
	it.place = aside
	g := q.asides[it.group]
	if g == nil {
		g = &group{items: map[*Item]struct{}{}, first: it}
		q.asides[it.group] = g
	}
	g.items[it] = struct{}{}
}

// Retry returns to the queue a pod whose attempt failed for another reason.
func (q *Queue) Retry(it *Item) {
	it.failed = true
	it.until = q.now().Add(it.delay())
	q.items[it.Key()] = it
	q.enqueue(it)
}

// Wake makes the refused pods for which helps returns true active, once their backoff
// ends, and returns their number. It calls helps once for each group of pods that are
// alike, with one of them.
func (q *Queue) Wake(helps func(p *state.Pod, plugins []string) bool) int {
	woken := 0
	for _, g := range q.asides {
		if !helps(g.first.Pod, g.first.Plugins) {
			continue
		}
		for it := range g.items {
			q.leave(it)
			q.enqueue(it)
			woken++
		}
	}
	return woken
}

// Again makes a refused pod active once its backoff ends, without an event that helps.
func (q *Queue) Again(key state.Key) {
	if it := q.items[key]; it != nil && it.place == aside {
		q.leave(it)
		q.enqueue(it)
	}
}

// Flush makes the pods active that have been aside for lastResort after their backoff.
// It must be called periodically.
func (q *Queue) Flush() {
	old := q.now().Add(-lastResort)
	for _, g := range q.asides {
		for it := range g.items {
			if it.until.Before(old) {
				q.leave(it)
				q.enqueue(it)
			}
		}
	}
}

// prioritized is a heap, highest priority first, then oldest first.
type prioritized struct{ items []*Item }

func (h *prioritized) Len() int { return len(h.items) }

func (h *prioritized) Less(i, j int) bool {
	a, b := h.items[i], h.items[j]
	if a.Pod.Priority != b.Pod.Priority {
		return a.Pod.Priority > b.Pod.Priority
	}
	if !a.since.Equal(b.since) {
		return a.since.Before(b.since)
	}
	return a.number < b.number
}

func (h *prioritized) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].index, h.items[j].index = i, j
}

func (h *prioritized) Push(x any) {
	it := x.(*Item)
	it.index = len(h.items)
	h.items = append(h.items, it)
}

func (h *prioritized) Pop() any {
	last := len(h.items) - 1
	it := h.items[last]
	h.items[last] = nil
	h.items = h.items[:last]
	return it
}

// timed is a heap, earliest end of backoff first.
type timed struct{ prioritized }

func (h *timed) Less(i, j int) bool { return h.items[i].until.Before(h.items[j].until) }

// earlier is a heap in the order of prioritized. Its items are also in the backoff heap,
// so it keeps their positions in Item.early.
type earlier struct{ prioritized }

func (h *earlier) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].early, h.items[j].early = i, j
}

func (h *earlier) Push(x any) {
	it := x.(*Item)
	it.early = len(h.items)
	h.items = append(h.items, it)
}

func (h *earlier) Pop() any {
	it := h.prioritized.Pop().(*Item)
	it.early = -1
	return it
}

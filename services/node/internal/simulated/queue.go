package simulated

import (
	"container/heap"
	"context"
	"sync"
	"time"

	"keelson.dev/proto/client"
)

// item is a pod in the queue.
type item struct {
	key         client.Key
	at          time.Time
	traceparent string
	index       int
}

// queue holds each pod at most once, ordered by due time. Its size is bounded by the number
// of pods.
type queue struct {
	mu    sync.Mutex
	heap  items
	byKey map[client.Key]*item
	wake  chan struct{}
}

func newQueue() *queue {
	return &queue{byKey: map[client.Key]*item{}, wake: make(chan struct{}, 1)}
}

// add queues a pod. If it is already queued, the earlier time counts.
func (q *queue) add(key client.Key, at time.Time, traceparent string) {
	q.mu.Lock()
	if it := q.byKey[key]; it != nil {
		if traceparent != "" {
			it.traceparent = traceparent
		}
		if at.Before(it.at) {
			it.at = at
			heap.Fix(&q.heap, it.index)
		}
	} else {
		it := &item{key: key, at: at, traceparent: traceparent}
		q.byKey[key] = it
		heap.Push(&q.heap, it)
	}
	q.mu.Unlock()
	q.poke()
}

func (q *queue) drop(key client.Key) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if it := q.byKey[key]; it != nil {
		heap.Remove(&q.heap, it.index)
		delete(q.byKey, key)
	}
}

func (q *queue) poke() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take waits until pods are due and takes them, at most limit at a time.
func (q *queue) take(ctx context.Context, limit int) ([]item, error) {
	for {
		out, wait := q.due(time.Now(), limit)
		if len(out) > 0 {
			return out, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-q.wake:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (q *queue) due(now time.Time, limit int) (out []item, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.heap) > 0 && len(out) < limit && !q.heap[0].at.After(now) {
		it := heap.Pop(&q.heap).(*item)
		delete(q.byKey, it.key)
		out = append(out, *it)
	}
	wait = time.Minute
	if len(q.heap) > 0 {
		wait = max(0, q.heap[0].at.Sub(now))
		if wait == 0 {
			q.poke() // let another worker take the rest
		}
	}
	return out, wait
}

// items is the heap.
type items []*item

func (h items) Len() int           { return len(h) }
func (h items) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h items) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *items) Push(x any) {
	it := x.(*item)
	it.index = len(*h)
	*h = append(*h, it)
}

// Pop implements heap.Interface.
func (h *items) Pop() any {
	old := *h
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return it
}

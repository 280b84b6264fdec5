package raft

import (
	"context"
	"strings"
	"sync"

	"keelson.dev/services/apiserver/internal/store"
)

// batchEvents and batchBytes bound one batch, and scanEvents the events that are examined while
// the lock is held.
const (
	batchEvents = 1000
	batchBytes  = 4 << 20
	scanEvents  = 10000
)

// Watch implements store.Store. It delivers what this member has applied.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Revision) (store.Watch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.closed.Load() {
		return nil, store.ErrClosed
	}
	if after == 0 {
		var err error
		if after, err = s.Revision(ctx); err != nil {
			return nil, err
		}
	}
	return &watch{m: s.machine, prefix: prefix, seen: after, progress: make(chan struct{}, 1), closed: make(chan struct{})}, nil
}

type watch struct {
	m        *machine
	prefix   string
	seen     store.Revision // used by Next only
	progress chan struct{}
	once     sync.Once
	closed   chan struct{}
}

// Next implements store.Watch.
func (w *watch) Next(ctx context.Context) (store.Batch, error) {
	asked := false
	for {
		b, changed, err := w.read(asked)
		if err != nil || len(b.Events) > 0 || b.Revision > 0 {
			return b, err
		}
		select {
		case <-changed:
		case <-w.progress:
			asked = true
		case <-w.closed:
			return store.Batch{}, store.ErrClosed
		case <-ctx.Done():
			return store.Batch{}, ctx.Err()
		}
	}
}

// read returns the events since the last batch. If there are none, changed is closed at the
// next change.
func (w *watch) read(progress bool) (b store.Batch, changed <-chan struct{}, err error) {
	m := w.m
	m.mu.RLock()
	defer m.mu.RUnlock()
	h := &m.history
	if m.closed {
		return b, nil, store.ErrClosed
	}
	if w.seen < h.compacted {
		return b, nil, &store.CompactedError{Oldest: h.compacted}
	}
	bytes := int64(0)
	i := h.after(w.seen)
	for end := min(h.length, i+scanEvents); i < end && len(b.Events) < batchEvents && bytes < batchBytes; i++ {
		e := h.at(i)
		w.seen = e.rev
		if !strings.HasPrefix(e.key(), w.prefix) {
			continue
		}
		if e.put != nil {
			bytes += e.put.size()
		}
		b.Events = append(b.Events, e.event())
	}
	switch {
	case len(b.Events) > 0, progress && i == h.length && w.seen >= m.rev:
		b.Revision = w.seen
	case i < h.length:
		return b, again, nil
	}
	return b, m.changed, nil
}

// again is a closed channel: there are more events to examine.
var again = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// Progress implements store.Watch.
func (w *watch) Progress(ctx context.Context) error {
	select {
	case w.progress <- struct{}{}:
	default:
	}
	return ctx.Err()
}

// Close implements store.Watch.
func (w *watch) Close() { w.once.Do(func() { close(w.closed) }) }

package raft

import (
	"sort"
	"strings"

	"keelson.dev/services/apiserver/internal/store"
)

// event is one change, with what was there before.
type event struct {
	rev         store.Revision
	put, before *record // put is nil for a deletion
}

func (e event) key() string {
	if e.put != nil {
		return e.put.key
	}
	return e.before.key
}

func (e event) event() store.Event {
	if e.put != nil {
		return store.Event{Type: store.Put, Entry: e.put.entry()}
	}
	return store.Event{Type: store.Deleted, Entry: store.Entry{Key: e.before.key, ModRevision: e.rev}}
}

// size is about what an event keeps in memory.
func (e event) size() int64 {
	n := int64(160)
	if e.put != nil {
		n += e.put.size()
	}
	if e.before != nil {
		n += e.before.size()
	}
	return n
}

// history is the newest changes, as many as its bounds allow. Members differ in
// how far back theirs reaches.
type history struct {
	maxEvents int
	maxBytes  int64
	// ring of events, ascending; length of them from start.
	ring          []event
	start, length int
	bytes         int64
	// compacted is the oldest state that is known: that before the first event.
	compacted store.Revision
}

func (h *history) at(i int) *event { return &h.ring[(h.start+i)%len(h.ring)] }

func (h *history) append(e event) {
	if h.length == len(h.ring) {
		grown := make([]event, max(64, min(2*len(h.ring), h.maxEvents+1)))
		if len(grown) <= h.length {
			grown = make([]event, h.length+1)
		}
		for i := range h.length {
			grown[i] = *h.at(i)
		}
		h.ring, h.start = grown, 0
	}
	h.length++
	*h.at(h.length - 1) = e
	h.bytes += e.size()
	for h.length > h.maxEvents || h.bytes > h.maxBytes && h.length > 1 {
		h.shift()
	}
}

// shift forgets the oldest event.
func (h *history) shift() {
	e := h.at(0)
	h.compacted = e.rev
	h.bytes -= e.size()
	*e = event{}
	h.start = (h.start + 1) % len(h.ring)
	h.length--
}

// compact forgets the events up to rev.
func (h *history) compact(rev store.Revision) {
	for h.length > 0 && h.at(0).rev <= rev {
		h.shift()
	}
	h.compacted = max(h.compacted, rev)
}

// reset forgets everything: the state is that of rev.
func (h *history) reset(rev store.Revision) {
	h.ring, h.start, h.length, h.bytes = nil, 0, 0, 0
	h.compacted = rev
}

// after is the position of the first event after rev.
func (h *history) after(rev store.Revision) int {
	return sort.Search(h.length, func(i int) bool { return h.at(i).rev > rev })
}

// changes are the events of a key after one revision and up to another; false
// says that they are no longer known.
func (h *history) changes(key string, after, upTo store.Revision) ([]event, bool) {
	if after < h.compacted {
		return nil, false
	}
	var out []event
	for i := h.after(after); i < h.length && h.at(i).rev <= upTo; i++ {
		if e := h.at(i); e.key() == key {
			out = append(out, *e)
		}
	}
	return out, true
}

// all are the events, oldest first.
func (h *history) all() []event {
	out := make([]event, h.length)
	for i := range out {
		out[i] = *h.at(i)
	}
	return out
}

// undo is what keys with a prefix were before the first event after rev; nil
// where they did not exist.
func (h *history) undo(prefix string, rev store.Revision) map[string]*record {
	out := map[string]*record{}
	for i := h.after(rev); i < h.length; i++ {
		e := h.at(i)
		key := e.key()
		if _, ok := out[key]; !ok && strings.HasPrefix(key, prefix) {
			out[key] = e.before
		}
	}
	return out
}

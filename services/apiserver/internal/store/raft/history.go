package raft

import (
	"sort"
	"strings"

	"keelson.dev/services/apiserver/internal/store"
)

// event is one change, with the previous state of the key.
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

// size estimates the memory of an event, in bytes.
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

// history holds the newest changes, as many as its bounds allow. Its length may differ between
// members.
type history struct {
	maxEvents int
	maxBytes  int64
	// ring holds the events in ascending order: length of them, from start.
	ring          []event
	start, length int
	bytes         int64
	// compacted is the oldest known state: the one before the first event.
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

// shift drops the oldest event.
func (h *history) shift() {
	e := h.at(0)
	h.compacted = e.rev
	h.bytes -= e.size()
	*e = event{}
	h.start = (h.start + 1) % len(h.ring)
	h.length--
}

// compact drops the events up to rev.
func (h *history) compact(rev store.Revision) {
	for h.length > 0 && h.at(0).rev <= rev {
		h.shift()
	}
	h.compacted = max(h.compacted, rev)
}

// reset drops all events: the oldest known state is that of rev.
func (h *history) reset(rev store.Revision) {
	h.ring, h.start, h.length, h.bytes = nil, 0, 0, 0
	h.compacted = rev
}

// after returns the position of the first event after rev.
func (h *history) after(rev store.Revision) int {
	return sort.Search(h.length, func(i int) bool { return h.at(i).rev > rev })
}

// changes returns the events of a key after one revision and up to another. It returns false if
// they are not known any more.
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

// all returns the events, oldest first.
func (h *history) all() []event {
	out := make([]event, h.length)
	for i := range out {
		out[i] = *h.at(i)
	}
	return out
}

// undo returns the state of keys with a prefix before their first event after rev: nil for keys
// that did not exist.
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

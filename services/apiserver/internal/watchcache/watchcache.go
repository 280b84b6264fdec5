// Package watchcache holds the present state of every kind in memory, fed by one
// watch of the store, and serves reads, lists and watches from it.
//
// Invariants:
//
//   - A kind's cache moves from revision to revision in order; a Snapshot is
//     immutable and shows exactly one revision.
//   - Consistent reads ask the store for its newest revision and wait until the
//     cache has reached it; they never answer from an older state.
//   - An event is decoded once and encoded once for each format; the same bytes
//     go to every watcher.
//   - A watcher that falls further behind than its buffer is cut off with
//     ErrSlow, after the events it was sent; it can resume from the last of them.
//     It never holds up another, nor the cache.
//   - Objects are shown with all of their defaults, as Kubernetes shows them, also
//     those that were stored before a default existed, or by somebody else. They
//     are completed where they are decoded, once, before anybody sees them, so
//     reads and watches cost nothing for it. Each stored object names the version
//     of the defaults that it was stored with (resource.DefaultsVersion, in the
//     envelope's extension); what this program stored itself is not looked at
//     again, so that completing costs something only after an upgrade, and only
//     for what was not written since. Nothing is written for it: the next write of
//     the object stores its defaults, also one that changes nothing else.
//   - Memory is bounded: events kept for resuming are bounded in number, bytes and
//     age for each kind; older start revisions answer *Expired.
//
// It must never change an object that it has handed out.
package watchcache

import (
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
)

// Item is one object at one revision. It is shared: nobody may change it.
type Item struct {
	Kind *resource.Kind
	// Object is the decoded object, with its resourceVersion and apiVersion/kind
	// left empty as client-go leaves them.
	Object resource.Object
	// Raw is the object's protobuf message (without envelope), resourceVersion
	// included.
	Raw []byte
	// Key is its store key, Revision its ModRevision.
	Key      string
	Revision store.Revision
	// Traceparent is the W3C trace context of the write, or empty.
	Traceparent string
	// WriteID is the id of the write, from the envelope.
	WriteID string
	// Completed says that the stored object lacked defaults, which Object and Raw
	// have: a write that changes nothing else stores them.
	Completed bool
}

// EventType says what happened, as a watcher with a filter sees it.
type EventType uint8

// The types of events.
const (
	Added EventType = iota + 1
	Modified
	Deleted
	Bookmark
)

// Event is one change. Of a deletion, Item is the last state with the deletion's
// revision as resourceVersion; of a bookmark, Item is nil.
type Event struct {
	Type     EventType
	Item     *Item
	Revision store.Revision
	// Old is the state before, whatever the watcher's filter says of it; nil if
	// there was none or it is not known (initial state).
	Old *Item
	// InitialEnd marks the bookmark that ends the initial state.
	InitialEnd bool
	// Frames caches encodings of the event; it is nil for bookmarks.
	Frames *Frames
}

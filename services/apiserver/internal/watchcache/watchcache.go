// Package watchcache holds the current state of every kind in memory, fed by one watch of the
// store, and serves reads, lists and watches from it.
//
// Invariants:
//
//   - A kind's cache advances from revision to revision in order. A Snapshot is immutable and
//     shows exactly one revision.
//   - Consistent reads ask the store for its newest revision and wait until the cache has
//     reached it. They never return an older state.
//   - An event is decoded once, and encoded once per format. All watchers get the same bytes.
//   - A watcher that falls further behind than its buffer is ended with ErrSlow, after the
//     events that were queued for it, and can resume after the last of them. It never delays
//     other watchers or the cache.
//   - Objects have all of their defaults, as Kubernetes returns them, also if they were stored
//     before a default existed or by another program. Defaults are applied once, when an object
//     is decoded, so that reads and watches do not pay for them. Each stored object records the
//     version of the defaults that it was stored with (resource.DefaultsVersion, in the
//     envelope's extension), and objects of the current version are not examined again:
//     applying defaults costs something only after an upgrade, for objects that have not been
//     written since. Nothing is written for it: the next write of the object stores its
//     defaults, even if it changes nothing else.
//   - Memory is bounded: the events that each kind keeps for watches that resume are bounded in
//     number, bytes and age. Watches from older revisions fail with *ExpiredError.
//   - An object is held encoded. Of each kind, only the objects that were written or read last
//     are held decoded as well (Config.Decoded); another one is decoded when somebody needs it.
//
// The package must never change an object that it has returned.
package watchcache

import (
	"sync/atomic"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
)

// Item is one object at one revision. It is shared and must not be changed.
type Item struct {
	Kind *resource.Kind
	// object is the decoded object, or nil if it has to be decoded from Raw; see Object.
	object atomic.Pointer[resource.Object]
	// recent is where an object that was decoded again is kept. It is nil for items that are in
	// no cache, which always have their object.
	recent *recent
	// Raw is the object's protobuf message with resourceVersion, without the envelope.
	Raw []byte
	// Key is the object's key in the store, and Revision its ModRevision.
	Key      string
	Revision store.Revision
	// Traceparent is the W3C trace context of the write, or empty.
	Traceparent string
	// WriteID is the id of the write, from the envelope.
	WriteID string
	// Completed is true if the stored object lacked defaults that Object and Raw have. A write
	// that changes nothing else stores them.
	Completed bool
}

// EventType is what happened, as a watcher with a filter sees it.
type EventType uint8

// Event types.
const (
	Added EventType = iota + 1
	Modified
	Deleted
	Bookmark
)

// Event is one change. For a deletion, Item is the last state, with the revision of the
// deletion as its resourceVersion. For a bookmark, Item is nil.
type Event struct {
	Type     EventType
	Item     *Item
	Revision store.Revision
	// Old is the previous state, whether or not it passes the watcher's filter. It is nil if
	// there was none or it is unknown (initial state).
	Old *Item
	// InitialEnd marks the bookmark that ends the initial state.
	InitialEnd bool
	// Frames caches encodings of the event. It is nil for bookmarks.
	Frames *Frames
}

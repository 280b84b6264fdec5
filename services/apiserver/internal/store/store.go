// Package store defines the interface through which the apiserver keeps its state: bytes under
// keys, with revisions.
//
// Invariants, which the suite in storetest checks for every implementation:
//
//   - One object, one revision: every successful write has a revision of its own, larger than
//     all earlier ones, also within a batch.
//   - The writes of a Commit are independent: each has its own precondition and verdict. They
//     may be applied in any order, except that writes to the same key are applied in the given
//     order.
//   - An acknowledged write is never lost. A write whose outcome is unknown fails with
//     ErrUnknownOutcome, never with ErrConflict.
//   - A watch delivers every event after its start revision exactly once, in order of
//     revisions, or ends with an error. It never skips an event.
//   - Get, and List without a revision, are linearizable.
//
// A store must not interpret values: encodings, resource versions and trace contexts belong to
// package envelope.
package store

import (
	"context"
	"errors"
	"fmt"
)

// Revision identifies a state of a store: the number of its last write.
type Revision int64

// Entry is a key, its value and the revisions of its writes.
type Entry struct {
	Key   string
	Value []byte
	// ModRevision is the revision of the last write, and CreateRevision that of the write that
	// created the key.
	ModRevision, CreateRevision Revision
}

// Special preconditions of a Write: the key must not exist, or there is none.
const (
	MustNotExist Revision = 0
	Any          Revision = -1
)

// Write is one conditional write. With the zero Expect it creates the key.
type Write struct {
	Key string
	// Value is the value to store. Nil deletes the key.
	Value []byte
	// Expect is the ModRevision that the key must have, or MustNotExist or Any. (With Any,
	// deleting a missing key fails with ErrNotFound.)
	Expect Revision
	// TTLSeconds, if not 0, makes the entry expire that long after the write, or up to a minute
	// later.
	TTLSeconds int64
	// Settled, if set, reports whether a value found in the store was written by this very
	// write, whose id it carries. A store resolves an unknown outcome with it, by repeating the
	// write.
	Settled func(found []byte) bool
	// Fence and Period, if set, are conditions that are checked in the same transaction. If one
	// does not hold, the write fails with ErrFenced.
	Fence, Period *Fence
}

// Fence is an epoch, such as that of an elected leader: Key must have ModRevision, which is 0 for
// a key that does not exist.
type Fence struct {
	Key         string
	ModRevision Revision
}

// Verdict is the outcome of a Write.
type Verdict struct {
	// Revision is the revision of the write if Err is nil, and otherwise 0.
	Revision Revision
	// Err is nil, ErrConflict, ErrNotFound, ErrExists, ErrFenced, ErrUnknownOutcome,
	// ErrTooMany, or another failure after which nothing was written.
	Err error
	// Current is the entry that made the write fail with ErrConflict or ErrExists. It is nil if
	// the implementation does not know it.
	Current *Entry
}

// Page is a page of a List.
type Page struct {
	Entries []Entry
	// More reports whether there are entries after the last one of this page.
	More bool
	// Count is the number of all entries with the prefix, on this page, before and after it.
	Count int64
	// Revision is the revision of the state that was read.
	Revision Revision
}

// ListOptions selects a page.
type ListOptions struct {
	// After is the key after which the page starts. Empty starts with the first key.
	After string
	// Limit is the largest number of entries. 0 means no limit.
	Limit int64
	// Revision is the revision to read at. 0 means the newest.
	Revision Revision
}

// EventType is what happened to a key.
type EventType uint8

// Event types.
const (
	Put EventType = iota + 1
	Deleted
)

// Event is one write.
type Event struct {
	Type EventType
	// Entry is the entry as written. Of a deletion, it has only Key and ModRevision.
	Entry Entry
}

// Batch is a batch of events of a watch, in order, none later than Revision. The watch has
// delivered all events up to Revision; a batch without events only reports this.
type Batch struct {
	Events   []Event
	Revision Revision
}

// Watch is a running watch.
type Watch interface {
	// Next waits for the next batch. It returns ErrCompacted if events after the start revision
	// are not known any more, ctx's error, or another error after which the caller must start a
	// new watch from the last revision that it received.
	Next(ctx context.Context) (Batch, error)
	// Progress requests a Batch that reports how far the watch has got. It does not wait for
	// it.
	Progress(ctx context.Context) error
	// Close ends the watch.
	Close()
}

// Store is a store of keys and values. It is safe for concurrent use.
type Store interface {
	// Get returns one entry, or ErrNotFound. The revision is the store's at the time of
	// reading.
	Get(ctx context.Context, key string) (Entry, Revision, error)
	// List returns entries whose keys have the prefix, in order of keys.
	List(ctx context.Context, prefix string, opts ListOptions) (Page, error)
	// Commit applies independent writes, which share the disk's syncs, and returns their
	// verdicts in the same order. It returns an error only if all of them failed for the same
	// reason (a closed store, or a context that ended before anything was sent).
	Commit(ctx context.Context, writes []Write) ([]Verdict, error)
	// Watch follows the keys with the prefix, starting with the first event after revision
	// after. 0 means from now on.
	Watch(ctx context.Context, prefix string, after Revision) (Watch, error)
	// Revision returns the newest revision. It is linearizable: every write acknowledged before
	// the call has at most this revision.
	Revision(ctx context.Context) (Revision, error)
	// Compact drops the history before rev: lists at older revisions and watches from older
	// revisions fail with ErrCompacted.
	Compact(ctx context.Context, rev Revision) error
}

// As returns s, or the first store that it wraps (as returned by a method Unwrap), that
// implements T. It returns false if there is none.
func As[T any](s Store) (T, bool) {
	for {
		if t, ok := s.(T); ok {
			return t, true
		}
		outer, ok := s.(interface{ Unwrap() Store })
		if !ok {
			var none T
			return none, false
		}
		s = outer.Unwrap()
	}
}

// Errors of a store.
var (
	ErrNotFound       = errors.New("key not found")
	ErrExists         = errors.New("key exists")
	ErrConflict       = errors.New("entry changed since it was read")
	ErrCompacted      = errors.New("revision compacted")
	ErrFutureRevision = errors.New("revision is in the future")
	// ErrFenced means that the epoch of a write's Fence or Period has ended.
	ErrFenced  = errors.New("the writer's epoch has ended")
	ErrTooMany = errors.New("too many writes in flight")
	ErrClosed  = errors.New("store is closed")
	// ErrNoSpace is the error of a write while the store has reached its quota. Deletions are
	// accepted.
	ErrNoSpace = errors.New("the store is full: delete objects that are not needed; deletions are accepted, and their space is returned within a minute")
	// ErrUnavailable means that nothing was done, because too few of the store's members can be
	// reached at present.
	ErrUnavailable = errors.New("too few members of the store can be reached")
	// ErrUnknownOutcome means that the write may or may not have been applied, or may still be
	// applied.
	ErrUnknownOutcome = errors.New("outcome of the write is unknown")
)

// CompactedError is an ErrCompacted with the oldest revision that can still be read.
type CompactedError struct{ Oldest Revision }

func (e *CompactedError) Error() string {
	return fmt.Sprintf("revision compacted; the oldest is %d", e.Oldest)
}

// Is makes errors.Is(err, ErrCompacted) true.
func (e *CompactedError) Is(target error) bool { return target == ErrCompacted }

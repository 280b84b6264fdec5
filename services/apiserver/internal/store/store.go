// Package store keeps bytes under keys, with revisions: the one interface that
// the apiserver has to state that must last.
//
// Invariants, which the suite in storetest holds every implementation to:
//
//   - One object, one revision: every successful write gets a revision of its
//     own, larger than all before it, also inside a batch.
//   - A Commit's writes are independent: each has its own precondition and
//     verdict. They may be applied in any order unless they name the same key,
//     in which case they are applied in the order given.
//   - An acknowledged write is never lost. A write whose outcome is unknown
//     fails with ErrUnknownOutcome, never with ErrConflict.
//   - Watch delivers every event after its start revision once, in revision
//     order, or ends with ErrCompacted; it never skips.
//   - Get and List without a revision are linearizable.
//
// It must never look inside a value: encoding, resource versions and trace
// contexts belong to package envelope.
package store

import (
	"context"
	"errors"
	"fmt"
)

// Revision counts the writes to a store.
type Revision int64

// Entry is a key, its value and when it was written.
type Entry struct {
	Key   string
	Value []byte
	// ModRevision is the revision of the last write, CreateRevision that of the
	// first since the key was absent.
	ModRevision, CreateRevision Revision
}

// MustNotExist and Any are special preconditions of a Write.
const (
	MustNotExist Revision = 0
	Any          Revision = -1
)

// Write is one conditional write. The zero Expect creates.
type Write struct {
	Key string
	// Value is what to store; nil deletes.
	Value []byte
	// Expect is the key's ModRevision that the write depends on, MustNotExist or
	// Any (with Any, deleting an absent key is ErrNotFound).
	Expect Revision
	// TTLSeconds, if not 0, lets the entry expire that long after the write, or
	// up to a minute later.
	TTLSeconds int64
	// Settled, if set, tells whether a value found in the store was written by
	// this very write (it carries the write's id): that is how an unknown
	// outcome is settled by repeating the write.
	Settled func(found []byte) bool
	// Fence, if set, must hold in the same transaction.
	Fence *Fence
}

// Fence is an epoch that a write depends on: Key must have ModRevision.
type Fence struct {
	Key         string
	ModRevision Revision
}

// Verdict is what became of a Write.
type Verdict struct {
	// Revision of the write, when Err is nil.
	Revision Revision
	// Err is nil, ErrConflict, ErrNotFound, ErrExists, ErrFenced,
	// ErrUnknownOutcome, ErrTooMany, or a failure of the store (nothing was
	// written).
	Err error
	// Current is the entry that was found instead, with ErrConflict and
	// ErrExists, where the implementation knows it.
	Current *Entry
}

// Page is part of a List.
type Page struct {
	Entries []Entry
	// More says that there are entries after the last one of this page.
	More bool
	// Count is the number of entries in the whole range, this page and before
	// and after it.
	Count int64
	// Revision is the state that the page shows.
	Revision Revision
}

// ListOptions select a page.
type ListOptions struct {
	// After is the key after which to start; empty starts at the beginning.
	After string
	// Limit is the largest number of entries; 0 is all.
	Limit int64
	// Revision is the state to read; 0 is the newest.
	Revision Revision
}

// EventType says what happened to a key.
type EventType uint8

// The types of events.
const (
	Put EventType = iota + 1
	Deleted
)

// Event is one write, as a watch sees it.
type Event struct {
	Type EventType
	// Entry is the entry as written; of a deletion, key and ModRevision.
	Entry Entry
}

// Batch is what a watch delivers: events in order, all at or before Revision.
// A batch without events says that the watch has seen everything up to
// Revision.
type Batch struct {
	Events   []Event
	Revision Revision
}

// Watch is a running watch.
type Watch interface {
	// Next waits for the next batch. It returns ErrCompacted when the start
	// revision is no longer known, ctx's error, or another error after which
	// watching must start anew from the last revision seen.
	Next(ctx context.Context) (Batch, error)
	// Progress asks for a Batch that shows how far the watch is, soon.
	Progress(ctx context.Context) error
	// Close ends the watch.
	Close()
}

// Store is where state lies.
type Store interface {
	// Get reads one entry; a missing one is ErrNotFound. The revision is the
	// store's at the time of reading.
	Get(ctx context.Context, key string) (Entry, Revision, error)
	// List reads the entries whose keys have the prefix, in order.
	List(ctx context.Context, prefix string, opts ListOptions) (Page, error)
	// Commit carries out independent writes, sharing the disk's syncs, and
	// returns one verdict each, in order. The error is for failures of the whole
	// (a closed store, a context that ended before anything was sent).
	Commit(ctx context.Context, writes []Write) ([]Verdict, error)
	// Watch follows the keys with the prefix from the revision after `after`; 0
	// is from now on.
	Watch(ctx context.Context, prefix string, after Revision) (Watch, error)
	// Revision is the newest revision, linearizably: every write acknowledged
	// before the call has a revision at or below it.
	Revision(ctx context.Context) (Revision, error)
	// Compact forgets the history before rev: lists at older revisions and
	// watches from before it answer ErrCompacted.
	Compact(ctx context.Context, rev Revision) error
}

// As finds what a store can do besides, or one that it wraps (and returns from a method
// Unwrap).
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

// The errors of a store.
var (
	ErrNotFound       = errors.New("key not found")
	ErrExists         = errors.New("key exists")
	ErrConflict       = errors.New("entry changed since it was read")
	ErrCompacted      = errors.New("revision compacted")
	ErrFutureRevision = errors.New("revision lies in the future")
	ErrFenced         = errors.New("writer's epoch is over")
	ErrTooMany        = errors.New("too many writes in flight")
	ErrClosed         = errors.New("store is closed")
	// ErrUnavailable means that nothing was done because too few members of the
	// store can be reached, now.
	ErrUnavailable = errors.New("too few members of the store can be reached")
	// ErrUnknownOutcome means that the write may or may not have happened.
	ErrUnknownOutcome = errors.New("outcome of the write is unknown")
)

// CompactedError is ErrCompacted with the oldest revision that can be read.
type CompactedError struct{ Oldest Revision }

func (e *CompactedError) Error() string {
	return fmt.Sprintf("revision compacted; the oldest is %d", e.Oldest)
}

// Is makes errors.Is(err, ErrCompacted) true.
func (e *CompactedError) Is(target error) bool { return target == ErrCompacted }

// Package memory is the reference implementation of store.Store: a sorted map, a log and a
// mutex. Tests of the layers above the store use it, and the conformance suite holds the other
// stores to its behaviour.
//
// It must stay simple: it defines in code what a store does.
package memory

import (
	"context"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/google/btree"

	"keelson.dev/services/apiserver/internal/store"
)

type version struct {
	rev, created store.Revision
	value        []byte // nil: deleted
}

type record struct {
	key      string
	versions []version // ascending
	expiry   *time.Timer
}

// at returns the version at rev, or false if the key did not exist.
func (r *record) at(rev store.Revision) (version, bool) {
	i := sort.Search(len(r.versions), func(i int) bool { return r.versions[i].rev > rev })
	if i == 0 || r.versions[i-1].value == nil {
		return version{}, false
	}
	return r.versions[i-1], true
}

// Store is a store in memory.
type Store struct {
	mu        sync.Mutex
	records   *btree.BTreeG[*record]
	log       []store.Event // ascending, without the compacted ones
	rev       store.Revision
	compacted store.Revision
	changed   chan struct{} // closed and replaced at each change
	closed    bool
}

// New returns an empty store. As in etcd, its revision starts at 1.
func New() *Store {
	return &Store{
		records: btree.NewG(32, func(a, b *record) bool { return a.key < b.key }),
		rev:     1,
		changed: make(chan struct{}),
	}
}

// Close ends all watches. Later calls fail with store.ErrClosed.
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	s.records.Ascend(func(r *record) bool {
		if r.expiry != nil {
			r.expiry.Stop()
		}
		return true
	})
	close(s.changed)
}

// signal wakes the watches. The caller holds mu.
func (s *Store) signal() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, store.Revision, error) {
	if err := ctx.Err(); err != nil {
		return store.Entry{}, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.Entry{}, 0, store.ErrClosed
	}
	if e, ok := s.current(key); ok {
		return e, s.rev, nil
	}
	return store.Entry{}, s.rev, store.ErrNotFound
}

// current returns the entry of a key. The caller holds mu.
func (s *Store) current(key string) (store.Entry, bool) {
	r, ok := s.records.Get(&record{key: key})
	if !ok {
		return store.Entry{}, false
	}
	v, ok := r.at(s.rev)
	return entry(key, v), ok
}

func entry(key string, v version) store.Entry {
	return store.Entry{Key: key, Value: v.value, ModRevision: v.rev, CreateRevision: v.created}
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, o store.ListOptions) (store.Page, error) {
	if err := ctx.Err(); err != nil {
		return store.Page{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	rev := o.Revision
	switch {
	case s.closed:
		return store.Page{}, store.ErrClosed
	case rev == 0:
		rev = s.rev
	case rev > s.rev:
		return store.Page{}, store.ErrFutureRevision
	case rev < s.compacted:
		return store.Page{}, &store.CompactedError{Oldest: s.compacted}
	}
	page := store.Page{Revision: rev}
	s.records.AscendGreaterOrEqual(&record{key: prefix}, func(r *record) bool {
		if !strings.HasPrefix(r.key, prefix) {
			return false
		}
		v, ok := r.at(rev)
		if !ok {
			return true
		}
		page.Count++
		switch {
		case o.After != "" && r.key <= o.After:
		case o.Limit > 0 && int64(len(page.Entries)) >= o.Limit:
			page.More = true
		default:
			page.Entries = append(page.Entries, entry(r.key, v))
		}
		return true
	})
	return page, nil
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, writes []store.Write) ([]store.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, store.ErrClosed
	}
	verdicts := make([]store.Verdict, len(writes))
	for i := range writes {
		verdicts[i] = s.write(&writes[i])
	}
	s.signal()
	return verdicts, nil
}

// write applies one write. The caller holds mu.
func (s *Store) write(w *store.Write) store.Verdict {
	for _, f := range [2]*store.Fence{w.Fence, w.Period} {
		if f == nil {
			continue
		}
		if e, _ := s.current(f.Key); e.ModRevision != f.ModRevision {
			return store.Verdict{Err: store.ErrFenced}
		}
	}
	cur, exists := s.current(w.Key)
	switch {
	case w.Expect == store.Any:
		if !exists && w.Value == nil {
			return store.Verdict{Err: store.ErrNotFound}
		}
	case w.Expect == store.MustNotExist:
		if exists {
			return store.Verdict{Err: store.ErrExists, Current: &cur}
		}
		if w.Value == nil {
			return store.Verdict{Err: store.ErrNotFound}
		}
	case !exists:
		return store.Verdict{Err: store.ErrNotFound}
	case cur.ModRevision != w.Expect:
		return store.Verdict{Err: store.ErrConflict, Current: &cur}
	}
	return store.Verdict{Revision: s.put(w.Key, w.Value, w.TTLSeconds)}
}

// put stores a value, or deletes the key if value is nil. The caller holds mu.
func (s *Store) put(key string, value []byte, ttl int64) store.Revision {
	s.rev++
	r, ok := s.records.Get(&record{key: key})
	if !ok {
		r = &record{key: key}
		s.records.ReplaceOrInsert(r)
	}
	v := version{rev: s.rev, created: s.rev}
	if old, ok := r.at(s.rev); ok {
		v.created = old.created
	}
	ev := store.Event{Type: store.Deleted, Entry: store.Entry{Key: key, ModRevision: s.rev}}
	if value != nil {
		v.value = append(make([]byte, 0, len(value)), value...)
		ev = store.Event{Type: store.Put, Entry: entry(key, v)}
	}
	r.versions = append(r.versions, v)
	s.log = append(s.log, ev)
	if r.expiry != nil {
		r.expiry.Stop()
		r.expiry = nil
	}
	if value != nil && ttl > 0 {
		rev := s.rev
		r.expiry = time.AfterFunc(time.Duration(ttl)*time.Second, func() { s.expire(key, rev) })
	}
	return s.rev
}

func (s *Store) expire(key string, rev store.Revision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	if e, ok := s.current(key); ok && e.ModRevision == rev {
		s.put(key, nil, 0)
		s.signal()
	}
}

// Revision implements store.Store.
func (s *Store) Revision(ctx context.Context) (store.Revision, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, store.ErrClosed
	}
	return s.rev, nil
}

// Compact implements store.Store.
func (s *Store) Compact(ctx context.Context, rev store.Revision) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return store.ErrClosed
	case rev > s.rev:
		return store.ErrFutureRevision
	case rev <= s.compacted:
		return nil
	}
	s.compacted = rev
	i := sort.Search(len(s.log), func(i int) bool { return s.log[i].Entry.ModRevision >= rev })
	s.log = append([]store.Event(nil), s.log[i:]...)
	var gone []*record
	s.records.Ascend(func(r *record) bool {
		i := sort.Search(len(r.versions), func(i int) bool { return r.versions[i].rev > rev })
		if i > 0 && r.versions[i-1].value != nil {
			i--
		}
		r.versions = append([]version(nil), r.versions[i:]...)
		if len(r.versions) == 0 {
			gone = append(gone, r)
		}
		return true
	})
	for _, r := range gone {
		s.records.Delete(r)
	}
	s.signal()
	return nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Revision) (store.Watch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, store.ErrClosed
	}
	if after == 0 {
		after = s.rev
	}
	return &watch{s: s, prefix: prefix, seen: after, progress: make(chan struct{}, 1), closed: make(chan struct{})}, nil
}

type watch struct {
	s        *Store
	prefix   string
	seen     store.Revision // used by Next only
	progress chan struct{}
	once     sync.Once
	closed   chan struct{}
}

// batchEvents bounds the events of a batch.
const batchEvents = 1000

func (w *watch) Next(ctx context.Context) (store.Batch, error) {
	asked := false
	for {
		b, changed, err := w.read(asked)
		if err != nil || len(b.Events) > 0 || (asked && b.Revision > 0) {
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

// read returns the events since the last batch. If there are none, the channel is closed at the
// next change.
func (w *watch) read(progress bool) (store.Batch, <-chan struct{}, error) {
	s := w.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return store.Batch{}, nil, store.ErrClosed
	}
	if w.seen+1 < s.compacted {
		return store.Batch{}, nil, &store.CompactedError{Oldest: s.compacted}
	}
	i := sort.Search(len(s.log), func(i int) bool { return s.log[i].Entry.ModRevision > w.seen })
	var b store.Batch
	for ; i < len(s.log) && len(b.Events) < batchEvents; i++ {
		if strings.HasPrefix(s.log[i].Entry.Key, w.prefix) {
			b.Events = append(b.Events, s.log[i])
		}
		w.seen = s.log[i].Entry.ModRevision
	}
	if len(b.Events) > 0 || (progress && w.seen >= s.rev) {
		b.Revision = w.seen
	}
	return b, s.changed, nil
}

func (w *watch) Progress(ctx context.Context) error {
	select {
	case w.progress <- struct{}{}:
	default:
	}
	return ctx.Err()
}

func (w *watch) Close() { w.once.Do(func() { close(w.closed) }) }

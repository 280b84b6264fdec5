package watchcache

import (
	"strings"
	"sync"
	"time"

	"github.com/google/btree"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
)

const treeDegree = 32

type tree = btree.BTreeG[*Item]

func newTree() *tree {
	return btree.NewG(treeDegree, func(a, b *Item) bool { return a.Key < b.Key })
}

// KindCache is the cache of one kind.
type KindCache struct {
	cache *Cache
	kind  *resource.Kind

	mu       sync.RWMutex
	items    *tree
	shared   *tree          // a clone of items for snapshots; nil after a change
	rev      store.Revision // of the last change or load
	history  history
	watchers watchers
	recent   recent
}

func newKindCache(c *Cache, k *resource.Kind) *KindCache {
	return &KindCache{
		cache:   c,
		kind:    k,
		items:   newTree(),
		history: history{maxEvents: c.cfg.HistoryEvents, maxBytes: c.cfg.HistoryBytes, minEvents: c.cfg.HistoryMin, maxAge: c.cfg.HistoryAge},
		recent:  recent{max: c.cfg.Decoded},
	}
}

// Kind returns the kind.
func (kc *KindCache) Kind() *resource.Kind { return kc.kind }

// Get returns an object from the current state. For a consistent read, call Cache.Fresh first.
func (kc *KindCache) Get(key string) (*Item, bool) {
	kc.mu.RLock()
	defer kc.mu.RUnlock()
	return kc.items.Get(&Item{Key: key})
}

// Len returns the number of objects.
func (kc *KindCache) Len() int {
	kc.mu.RLock()
	defer kc.mu.RUnlock()
	return kc.items.Len()
}

// Snapshot returns the current state.
func (kc *KindCache) Snapshot() Snapshot {
	rev := kc.cache.Revision() // read before locking: the state is at least as new
	kc.mu.RLock()
	if kc.shared != nil {
		s := Snapshot{items: kc.shared, rev: max(rev, kc.rev)}
		kc.mu.RUnlock()
		return s
	}
	kc.mu.RUnlock()
	kc.mu.Lock()
	defer kc.mu.Unlock()
	return Snapshot{items: kc.share(), rev: max(rev, kc.rev)}
}

// share returns an immutable clone of items. The caller holds the lock.
func (kc *KindCache) share() *tree {
	if kc.shared == nil {
		kc.shared = kc.items.Clone()
	}
	return kc.shared
}

// SnapshotAt returns the state at rev, for a list that continues. It returns false if the state
// is not known any more (the store may still know it) or not yet.
func (kc *KindCache) SnapshotAt(rev store.Revision) (Snapshot, bool) {
	now := kc.Snapshot()
	if rev == now.rev {
		return now, true
	}
	kc.mu.Lock()
	defer kc.mu.Unlock()
	if rev > max(now.rev, kc.rev) || rev < kc.history.oldest {
		return Snapshot{}, false
	}
	undo := kc.history.after(rev)
	if len(undo) == 0 {
		return Snapshot{items: kc.share(), rev: rev}, true
	}
	items := kc.items.Clone()
	for i := len(undo) - 1; i >= 0; i-- {
		if c := undo[i]; c.old != nil {
			items.ReplaceOrInsert(c.old)
		} else {
			items.Delete(c.item)
		}
	}
	return Snapshot{items: items, rev: rev}, true
}

// Snapshot is a kind's state at one revision. It is immutable.
type Snapshot struct {
	items *tree
	rev   store.Revision
}

// Revision returns the revision of the state.
func (s Snapshot) Revision() store.Revision { return s.rev }

// Len returns the number of objects.
func (s Snapshot) Len() int { return s.items.Len() }

// Get returns one object.
func (s Snapshot) Get(key string) (*Item, bool) { return s.items.Get(&Item{Key: key}) }

// Ascend calls f for each object whose key has the prefix and is greater than after, in order
// of keys, until f returns false. If after is empty, it starts with the first.
func (s Snapshot) Ascend(prefix, after string, f func(*Item) bool) {
	from := prefix
	if after > from {
		from = after
	}
	s.items.AscendGreaterOrEqual(&Item{Key: from}, func(it *Item) bool {
		if !strings.HasPrefix(it.Key, prefix) {
			return false
		}
		if it.Key == after && after != "" {
			return true
		}
		return f(it)
	})
}

// Count returns the number of objects whose key has the prefix and is greater than after.
func (s Snapshot) Count(prefix, after string) int {
	n := 0
	s.Ascend(prefix, after, func(*Item) bool { n++; return true })
	return n
}

// change is one write, as applied to the cache.
type change struct {
	rev store.Revision
	at  time.Time
	// item is the new state, or nil if the object was deleted. old is the previous state, or
	// nil if there was none.
	item, old *Item
	// modified, added and deleted are the event as watchers with different filters see it. Each
	// is created when it is first needed.
	modified, added, deleted *Event
	once                     [Deleted + 1]sync.Once
}

// event returns the change as a watcher with this filter sees it, or nil if neither the old nor
// the new state passes the filter.
func (c *change) event(filter func(*Item) bool) *Event {
	was := c.old != nil && (filter == nil || filter(c.old))
	is := c.item != nil && (filter == nil || filter(c.item))
	switch {
	case was && is:
		c.once[Modified].Do(func() {
			c.modified = &Event{Type: Modified, Item: c.item, Old: c.old, Revision: c.rev, Frames: &Frames{}}
		})
		return c.modified
	case is:
		c.once[Added].Do(func() {
			c.added = &Event{Type: Added, Item: c.item, Old: c.old, Revision: c.rev, Frames: &Frames{}}
		})
		return c.added
	case was:
		c.once[Deleted].Do(func() {
			c.deleted = &Event{Type: Deleted, Item: c.old.At(c.rev), Old: c.old, Revision: c.rev, Frames: &Frames{}}
			if c.item != nil {
				c.deleted.Item.Traceparent = c.item.Traceparent
			}
		})
		return c.deleted
	}
	return nil
}

// bytes estimates the memory of the change.
func (c *change) bytes() int64 {
	const fixed = 300
	n := int64(fixed)
	if c.item != nil {
		n += int64(3 * len(c.item.Raw)) // encoded, decoded, and a frame
	}
	return n
}

// apply applies one change. It is called only by the goroutine that feeds the cache.
func (kc *KindCache) apply(rev store.Revision, key string, item *Item) {
	if c := kc.change(rev, key, item); c != nil {
		kc.watchers.dispatch(kc, c)
	}
}

func (kc *KindCache) change(rev store.Revision, key string, item *Item) *change {
	kc.mu.Lock()
	defer kc.mu.Unlock()
	if rev <= kc.rev { // already applied: the watch of the store was resumed
		return nil
	}
	kc.rev = rev
	kc.shared = nil
	c := &change{rev: rev, at: time.Now(), item: item}
	if item != nil {
		kc.recent.hold(item)
		c.old, _ = kc.items.ReplaceOrInsert(item)
	} else {
		c.old, _ = kc.items.Delete(&Item{Key: key})
	}
	if c.item == nil && c.old == nil {
		return nil
	}
	kc.history.add(c)
	return c
}

// history holds the last changes.
type history struct {
	changes              []*change // ascending; the first `start` were dropped
	start                int
	bytes                int64
	oldest               store.Revision // all changes after it are known
	maxEvents, minEvents int
	maxBytes             int64
	maxAge               time.Duration
}

func (h *history) add(c *change) {
	h.changes = append(h.changes, c)
	h.bytes += c.bytes()
	h.trim(c.at)
}

// trim drops changes that exceed the bounds.
func (h *history) trim(now time.Time) {
	for n := len(h.changes) - h.start; n > 0; n-- {
		first := h.changes[h.start]
		if n <= h.maxEvents && (n <= h.minEvents || h.bytes <= h.maxBytes && now.Sub(first.at) <= h.maxAge) {
			break
		}
		h.bytes -= first.bytes()
		h.oldest = first.rev
		h.changes[h.start] = nil
		h.start++
	}
	if h.start > 1024 && h.start > len(h.changes)/2 {
		live := h.changes[h.start:]
		h.changes = append(make([]*change, 0, 2*len(live)), live...)
		h.start = 0
	}
}

// after returns the changes after rev, oldest first.
func (h *history) after(rev store.Revision) []*change {
	live := h.changes[h.start:]
	i, j := 0, len(live)
	for i < j {
		if m := (i + j) / 2; live[m].rev > rev {
			j = m
		} else {
			i = m + 1
		}
	}
	return live[i:]
}

func (h *history) reset(rev store.Revision) {
	h.changes, h.start, h.bytes, h.oldest = nil, 0, 0, rev
}

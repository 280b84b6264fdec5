package watchcache

import (
	"strconv"
	"sync"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
)

// Written is an object that this process is about to store. When the event returns from the
// store, the cache recognizes it by the write's id and does not decode it again: writer and
// cache share one Item.
type Written struct {
	Kind *resource.Kind
	// Object and what it points to must not be changed any more. Its resourceVersion is set
	// when the revision is known.
	Object resource.Object
	// Raw is the object's protobuf message without resourceVersion.
	Raw                       []byte
	Key, Traceparent, WriteID string

	once sync.Once
	item *Item
	err  error
}

// At returns the item that the object became at rev. Only the first call uses its rev: a write
// has only one revision.
func (w *Written) At(rev store.Revision) (*Item, error) {
	w.once.Do(func() {
		raw, err := envelope.WithResourceVersion(w.Raw, int64(rev))
		if err != nil {
			w.err = err
			return
		}
		w.Object.SetResourceVersion(strconv.FormatInt(int64(rev), 10))
		w.item = NewItem(w.Kind, w.Key, w.Object, raw)
		w.item.Revision, w.item.Traceparent, w.item.WriteID = rev, w.Traceparent, w.WriteID
	})
	return w.item, w.err
}

// maxExpected bounds the announced writes that have not returned from the store. Beyond it, the
// oldest is forgotten and decoded like a write of another process.
const maxExpected = 4096

// expected holds the announced writes by id.
type expected struct {
	mu    sync.Mutex
	byID  map[string]*Written
	order [maxExpected]string // a ring of ids, the oldest at next
	next  int
}

// Announce registers w, which is about to be stored.
func (c *Cache) Announce(w *Written) {
	e := &c.expected
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.byID == nil {
		e.byID = make(map[string]*Written)
	}
	delete(e.byID, e.order[e.next])
	e.order[e.next] = w.WriteID
	e.next = (e.next + 1) % maxExpected
	e.byID[w.WriteID] = w
}

// Withdraw removes w, which was not stored.
func (c *Cache) Withdraw(w *Written) { c.expected.take(w.WriteID) }

// take removes and returns the write announced under an id, or nil if there is none.
func (e *expected) take(id string) *Written {
	if id == "" {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.byID[id]
	if w != nil {
		delete(e.byID, id)
	}
	return w
}

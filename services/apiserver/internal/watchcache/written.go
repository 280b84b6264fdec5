package watchcache

import (
	"strconv"
	"sync"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
)

// Written is an object that this process is about to store. The cache finds it by
// the write's id when the event comes back from the store, and need not decode it
// again: writer and cache share one Item.
type Written struct {
	Kind *resource.Kind
	// Object is the object; nobody may change it any more, nor what it points to.
	// Its resourceVersion is set when the revision is known.
	Object resource.Object
	// Raw is its protobuf message without resourceVersion.
	Raw                       []byte
	Key, Traceparent, WriteID string

	once sync.Once
	item *Item
	err  error
}

// At is the item that the object became at a revision. The first caller's
// revision is the one: there is only one for a write.
func (w *Written) At(rev store.Revision) (*Item, error) {
	w.once.Do(func() {
		raw, err := envelope.WithResourceVersion(w.Raw, int64(rev))
		if err != nil {
			w.err = err
			return
		}
		w.Object.SetResourceVersion(strconv.FormatInt(int64(rev), 10))
		w.item = &Item{
			Kind: w.Kind, Object: w.Object, Raw: raw, Key: w.Key, Revision: rev,
			Traceparent: w.Traceparent, WriteID: w.WriteID,
		}
	})
	return w.item, w.err
}

// maxExpected bounds what was announced and has not come back. What falls out is
// decoded, as others' writes are.
const maxExpected = 4096

// expected holds what was announced, by write id.
type expected struct {
	mu    sync.Mutex
	byID  map[string]*Written
	order [maxExpected]string // a ring of ids, the oldest at next
	next  int
}

// Announce says that w is about to be stored. Withdraw takes it back.
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

// Withdraw says that w was not stored.
func (c *Cache) Withdraw(w *Written) { c.expected.take(w.WriteID) }

// take returns what was announced under an id, once; nil if nothing was.
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

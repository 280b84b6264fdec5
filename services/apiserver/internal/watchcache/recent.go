package watchcache

import (
	"fmt"
	"sync"

	"keelson.dev/services/apiserver/internal/resource"
)

// recent bounds how many objects of a kind are held decoded: those of the items that were
// written, or decoded again, last. The oldest is dropped first, whether or not it was read in
// between, so that a read costs nothing here.
type recent struct {
	mu   sync.Mutex
	ring []*Item // grows up to max, and is then overwritten from next on
	next int
	max  int
}

// add notes that the item's object was just decoded, and drops the object of another item if
// there are too many.
func (r *recent) add(it *Item) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ring) < r.max {
		r.ring = append(r.ring, it)
		return
	}
	r.ring[r.next].object.Store(nil)
	r.ring[r.next] = it
	r.next = (r.next + 1) % r.max
}

// hold puts an item that has its object under the bound of r. No one else may have seen the
// item yet.
func (r *recent) hold(it *Item) {
	it.recent = r
	r.add(it)
}

// Object returns the decoded object with its resourceVersion. Its apiVersion and kind are
// empty, as client-go leaves them. It is shared and must not be changed. Two calls may return
// different, equal objects.
func (it *Item) Object() resource.Object {
	if held := it.object.Load(); held != nil {
		return *held
	}
	obj := it.Kind.New()
	if err := obj.Unmarshal(it.Raw); err != nil {
		// Raw has been decoded before, or was made from an object.
		panic(fmt.Sprintf("watchcache: %s at revision %d cannot be decoded again: %v", it.Key, it.Revision, err))
	}
	if it.Kind.Decoded != nil {
		it.Kind.Decoded(obj)
	}
	if it.object.CompareAndSwap(nil, &obj) {
		it.recent.add(it)
	}
	return obj
}

// NewItem returns an item that is in no cache. Neither obj nor raw may be changed any more.
func NewItem(kind *resource.Kind, key string, obj resource.Object, raw []byte) *Item {
	it := &Item{Kind: kind, Key: key, Raw: raw}
	it.object.Store(&obj)
	return it
}

// As returns the item as one of another kind that shows the same stored object.
func (it *Item) As(kind *resource.Kind, obj resource.Object, raw []byte) *Item {
	out := NewItem(kind, it.Key, obj, raw)
	out.Revision, out.Traceparent, out.WriteID, out.Completed = it.Revision, it.Traceparent, it.WriteID, it.Completed
	return out
}

package controller

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
)

// ErrStale is returned by a reconcile whose cache does not contain its own last writes yet.
// The key is retried shortly.
var ErrStale = errors.New("the cache does not show the last write yet")

// revisioned is a cache that reports the revision that it has reached.
type revisioned interface{ Revision() uint64 }

// Writes records, by key, the revision of a controller's own last write, so that no
// decision is based on a cache that does not contain it: this prevents acting twice on one
// cause, such as two pods for one replica. Each Writes belongs to the cache of the kind
// that is written.
type Writes struct {
	cache revisioned
	mu    sync.Mutex
	last  map[Key]uint64
}

// NewWrites returns a Writes for objects that cache will contain.
func NewWrites(cache revisioned) *Writes {
	return &Writes{cache: cache, last: map[Key]uint64{}}
}

// Wrote records the resourceVersion of a write made for key.
func (w *Writes) Wrote(key Key, resourceVersion string) {
	rv, err := strconv.ParseUint(resourceVersion, 10, 64)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last[key] = max(w.last[key], rv)
}

// Fresh returns nil if the cache contains all writes recorded for key, and ErrStale
// otherwise.
func (w *Writes) Fresh(key Key) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	rv, ok := w.last[key]
	if !ok {
		return nil
	}
	if seen := w.cache.Revision(); seen < rv {
		return fmt.Errorf("%w: it is at %d, the write at %d", ErrStale, seen, rv)
	}
	delete(w.last, key)
	return nil
}

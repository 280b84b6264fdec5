package controller

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
)

// ErrStale is returned by a reconcile whose cache does not show its own last
// writes yet; it is tried again shortly.
var ErrStale = errors.New("the cache does not show the last write yet")

// revisioned is a cache that says how far it is.
type revisioned interface{ Revision() uint64 }

// Writes remembers, by key, the revision of a controller's own last writes, so
// that a decision is never made on a cache that does not show them: acting twice
// on one cause (two pods for one replica) is what it prevents. One Writes
// belongs to the cache of the kind that is written.
type Writes struct {
	cache revisioned
	mu    sync.Mutex
	last  map[Key]uint64
}

// NewWrites watches over writes that the cache will show.
func NewWrites(cache revisioned) *Writes {
	return &Writes{cache: cache, last: map[Key]uint64{}}
}

// Wrote remembers a write's resourceVersion on behalf of a key.
func (w *Writes) Wrote(key Key, resourceVersion string) {
	rv, err := strconv.ParseUint(resourceVersion, 10, 64)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last[key] = max(w.last[key], rv)
}

// Fresh is nil when the cache shows all writes of the key, and ErrStale
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

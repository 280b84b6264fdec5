package authn

import (
	"crypto/sha256"
	"sync"
	"time"
)

// digest identifies a credential, so that the cache need not keep the credential itself.
type digest = [sha256.Size]byte

// cache holds verified credentials until they expire. It has at most size entries: a new entry
// replaces the oldest one.
type cache[V any] struct {
	mu      sync.RWMutex
	size    int
	entries map[digest]entry[V]
	order   []digest // in order of arrival; a ring once it has size elements
	next    int
}

type entry[V any] struct {
	value V
	until time.Time
}

func newCache[V any](size int) *cache[V] {
	return &cache[V]{size: size, entries: make(map[digest]entry[V])}
}

func (c *cache[V]) get(key digest, now time.Time) (V, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e, ok := c.entries[key]
	if !ok || !now.Before(e.until) {
		var none V
		return none, false
	}
	return e.value, true
}

func (c *cache[V]) put(key digest, value V, until time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, known := c.entries[key]
	c.entries[key] = entry[V]{value, until}
	switch {
	case known:
	case len(c.order) < c.size:
		c.order = append(c.order, key)
	default:
		delete(c.entries, c.order[c.next])
		c.order[c.next] = key
		c.next = (c.next + 1) % len(c.order)
	}
}

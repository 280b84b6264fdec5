package client

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// catchUpPoll is how often CatchUp looks whether the cache has moved.
const catchUpPoll = 2 * time.Millisecond

// CatchUp waits until the cache shows every write that was acknowledged before
// the call, and returns ctx's error if it ends first. A process that takes over
// from another calls it before it decides on a cache that was filled while the
// other was still writing. It reads the collection's metadata once.
func (c *Cache[T]) CatchUp(ctx context.Context) error {
	select {
	case <-c.synced:
	case <-ctx.Done():
		return ctx.Err()
	}
	behind, revision, err := c.behind(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(catchUpPoll)
	defer tick.Stop()
	for c.revision.Load() < revision {
		for key, b := range behind {
			if c.shows(key, b) {
				delete(behind, key)
			}
		}
		if len(behind) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// awaited is what the store has of an object that the cache does not show: its
// revision, or that it is gone.
type awaited struct {
	revision uint64
	gone     bool
}

// behind compares the store with the cache and returns the difference, and the
// revision at which the store was read.
func (c *Cache[T]) behind(ctx context.Context) (map[Key]awaited, uint64, error) {
	var (
		out      = map[Key]awaited{}
		listed   = map[Key]struct{}{}
		revision uint64
	)
	for page, err := range Metadata(c.r.c, c.r.kind).pages(ctx, ListOptions{
		Namespace: c.opts.Namespace, LabelSelector: c.opts.LabelSelector, FieldSelector: c.opts.FieldSelector,
	}) {
		if err != nil {
			return nil, 0, err
		}
		if revision, err = strconv.ParseUint(page.GetResourceVersion(), 10, 64); err != nil {
			return nil, 0, fmt.Errorf("client: list of %s: resource version %q", c.r.kind.Resource, page.GetResourceVersion())
		}
		for _, a := range page.GetItems() {
			obj, err := Metadata(c.r.c, c.r.kind).decode(a)
			if err != nil {
				return nil, 0, err
			}
			key := KeyOf(obj)
			listed[key] = struct{}{}
			if b := (awaited{revision: revisionOf(obj)}); !c.shows(key, b) {
				out[key] = b
			}
		}
	}
	for _, obj := range c.List() {
		key := KeyOf(obj)
		if _, ok := listed[key]; !ok && revisionOf(obj) <= revision {
			out[key] = awaited{revision: revision, gone: true}
		}
	}
	return out, revision, nil
}

// shows tells whether the cache has come as far as awaited of an object.
func (c *Cache[T]) shows(key Key, a awaited) bool {
	obj, ok := c.Get(key.Namespace, key.Name)
	if !ok {
		return a.gone
	}
	return revisionOf(obj) >= a.revision
}

func revisionOf(obj Object) uint64 {
	rv, err := strconv.ParseUint(obj.GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return rv
}

package client

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// catchUpPoll is how often CatchUp checks whether the cache has advanced.
const catchUpPoll = 2 * time.Millisecond

// CatchUp waits until the cache shows every write that was acknowledged before the call, and
// returns ctx's error if ctx ends first. A process that takes over from another calls it
// before it makes decisions on a cache that was filled while the other was still writing.
// It reads the metadata of the collection once, and fails if that read fails.
func (c *Cache[T]) CatchUp(ctx context.Context) error {
	return c.CatchUpIn(ctx, c.opts.Namespace)
}

// CatchUpIn is CatchUp for the objects of one namespace. namespace is empty for all that the cache
// holds.
func (c *Cache[T]) CatchUpIn(ctx context.Context, namespace string) error {
	select {
	case <-c.synced:
	case <-ctx.Done():
		return ctx.Err()
	}
	behind, revision, err := c.behind(ctx, namespace)
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

// awaited is the state of an object in the store that the cache does not show yet: its
// revision, or that it is gone.
type awaited struct {
	revision uint64
	gone     bool
}

// behind compares a namespace of the store with the cache and returns the difference, and the
// revision at which the store was read.
func (c *Cache[T]) behind(ctx context.Context, namespace string) (map[Key]awaited, uint64, error) {
	var (
		out      = map[Key]awaited{}
		listed   = map[Key]struct{}{}
		revision uint64
	)
	for page, err := range Metadata(c.r.c, c.r.kind).pages(ctx, ListOptions{
		Namespace: namespace, LabelSelector: c.opts.LabelSelector, FieldSelector: c.opts.FieldSelector,
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
		if namespace != "" && key.Namespace != namespace {
			continue
		}
		if _, ok := listed[key]; !ok && revisionOf(obj) <= revision {
			out[key] = awaited{revision: revision, gone: true}
		}
	}
	return out, revision, nil
}

// shows reports whether the cache shows at least the awaited state of an object.
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

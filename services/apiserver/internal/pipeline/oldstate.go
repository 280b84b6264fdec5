package pipeline

import (
	"context"
	"errors"
	"strings"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// oldState is a state that the watch cache no longer has, read from the store.
type oldState struct {
	rev   store.Revision
	items []*watchcache.Item
}

// storeSnapshot reads the part of a state that a list needs: the objects with the prefix, after
// pos.after.
func (p *Pipeline) storeSnapshot(ctx context.Context, k *resource.Kind, prefix string, pos position) (*oldState, error) {
	const page = 1000
	out := &oldState{rev: pos.rev}
	after := pos.after
	place := p.place(k)
	for {
		got, err := place.Store.List(ctx, prefix, store.ListOptions{After: after, Limit: page, Revision: pos.rev})
		if errors.Is(err, store.ErrFutureRevision) {
			return nil, errTooLarge(pos.rev, place.Cache.Revision())
		}
		if err != nil {
			return nil, err
		}
		for _, e := range got.Entries {
			item, err := watchcache.Decode(k, e)
			if err != nil {
				p.cfg.Log.ErrorContext(ctx, "stored object cannot be read", "error", err, "key", e.Key)
				continue
			}
			out.items = append(out.items, item)
		}
		if !got.More || len(got.Entries) == 0 {
			return out, nil
		}
		after = got.Entries[len(got.Entries)-1].Key
	}
}

func (s *oldState) Revision() store.Revision { return s.rev }

func (s *oldState) Len() int { return len(s.items) }

func (s *oldState) Get(key string) (*watchcache.Item, bool) {
	for _, item := range s.items {
		if item.Key == key {
			return item, true
		}
	}
	return nil, false
}

func (s *oldState) Ascend(prefix, after string, f func(*watchcache.Item) bool) {
	for _, item := range s.items {
		if item.Key > after && strings.HasPrefix(item.Key, prefix) && !f(item) {
			return
		}
	}
}

func (s *oldState) Count(prefix, after string) int {
	n := 0
	s.Ascend(prefix, after, func(*watchcache.Item) bool { n++; return true })
	return n
}

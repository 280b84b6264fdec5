package pipeline

import (
	"context"
	"errors"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// state is the other objects as admission reads them.
type state struct {
	kinds map[schema.GroupResource]held
	store store.Store
}

type held struct {
	kind  *resource.Kind
	cache *watchcache.KindCache
}

// NewState returns the state that admission reads.
func NewState(table *resource.Table, cache *watchcache.Cache, st store.Store) admission.State {
	s := &state{kinds: map[schema.GroupResource]held{}, store: st}
	for _, k := range table.Kinds() {
		if k.Virtual() || k.StoredAs != nil {
			continue
		}
		if kc := cache.Kind(k); kc != nil {
			s.kinds[k.GVR().GroupResource()] = held{kind: k, cache: kc}
		}
	}
	return s
}

// Get implements admission.State.
func (s *state) Get(group, res, namespace, name string) (resource.Object, bool) {
	h, ok := s.kinds[schema.GroupResource{Group: group, Resource: res}]
	if !ok {
		return nil, false
	}
	item, ok := h.cache.Get(h.kind.Key(namespace, name))
	if !ok {
		return nil, false
	}
	return item.Object(), true
}

// GetFresh implements admission.State.
func (s *state) GetFresh(ctx context.Context, group, res, namespace, name string) (resource.Object, bool, error) {
	h, ok := s.kinds[schema.GroupResource{Group: group, Resource: res}]
	if !ok {
		return nil, false, nil
	}
	entry, _, err := s.store.Get(ctx, h.kind.Key(namespace, name))
	if errors.Is(err, store.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	item, err := watchcache.Decode(h.kind, entry)
	if err != nil {
		return nil, false, err
	}
	return item.Object(), true, nil
}

// Each implements admission.State.
func (s *state) Each(group, res, namespace string, f func(resource.Object) bool) {
	h, ok := s.kinds[schema.GroupResource{Group: group, Resource: res}]
	if !ok {
		return
	}
	h.cache.Snapshot().Ascend(h.kind.Prefix(namespace), "", func(item *watchcache.Item) bool { return f(item.Object()) })
}

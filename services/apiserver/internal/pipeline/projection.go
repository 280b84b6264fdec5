package pipeline

import (
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// A projection is a subresource that shows a part of each object to callers that may not read the
// rest. The pipeline applies it, so that no front can return a whole object by mistake.
//
// It takes no field selector: what a selector matches reveals fields that the part does not show.

// projectionOf returns the projection of the subresource that a list or watch names, or nil.
func projectionOf(sub *resource.Subresource, fieldSelector string) (*resource.Projection, error) {
	if sub == nil || sub.Projection == nil {
		return nil, nil
	}
	if fieldSelector != "" {
		return nil, apierrors.NewBadRequest("this subresource takes no field selector")
	}
	return sub.Projection, nil
}

// project returns an item that has only the part.
func project(part *resource.Projection, item *watchcache.Item) (*watchcache.Item, error) {
	obj := part.Of(item.Object())
	raw, err := obj.Marshal()
	if err != nil {
		return nil, err
	}
	return item.As(item.Kind, obj, raw), nil
}

// projectItems replaces the items of a list.
func projectItems(part *resource.Projection, items []*watchcache.Item) (err error) {
	for i, item := range items {
		if items[i], err = project(part, item); err != nil {
			return err
		}
	}
	return nil
}

// projectEvents returns the events that a watch of the part reports. Each event is compared,
// projected and encoded once for all watches.
func projectEvents(part *resource.Projection, events []*watchcache.Event) ([]*watchcache.Event, error) {
	out := make([]*watchcache.Event, 0, len(events))
	for _, ev := range events {
		if ev.Item == nil {
			out = append(out, ev)
			continue
		}
		projected, err := ev.Projected(part, func(item *watchcache.Item) (*watchcache.Item, error) {
			if ev.Type == watchcache.Modified && ev.Old != nil && part.Same(ev.Old.Object(), item.Object()) {
				return nil, nil
			}
			return project(part, item)
		})
		if err != nil {
			return nil, err
		}
		if projected != nil {
			out = append(out, projected)
		}
	}
	return out, nil
}

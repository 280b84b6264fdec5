package owner

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/proto/client"
	"keelson.dev/services/internal/controller"
)

// Claimer adopts and releases objects of type T for owners of type O. It adopts orphans
// that match an owner's selector, and releases objects that no longer do.
type Claimer[O, T client.Object] struct {
	Owners  client.Resource[O]
	Objects client.Resource[T]
	// Writes records the adoptions under the owner's key.
	Writes *controller.Writes
	// Adoptable, if not nil, reports whether an orphan that matches may be adopted.
	Adoptable func(T) bool
}

// Claim returns the objects that belong to o. owned are the objects that o controls, and
// orphans those in its namespace that have no controller. An adopted object is returned
// as it was before the adoption.
//
// Before it adopts, Claim reads o from the server, because the cache may not show yet
// that o was deleted or is being deleted. Such an owner adopts nothing.
func (c *Claimer[O, T]) Claim(ctx context.Context, o O, selector labels.Selector, owned, orphans []T) ([]T, error) {
	claims := Claim(o, selector, owned, orphans)
	for _, obj := range claims.Release {
		_, err := c.Objects.Patch(ctx, obj.GetNamespace(), obj.GetName(), types.StrategicMergePatchType, ReleasePatch(o.GetUID(), obj.GetUID()))
		if ignoreGone(err) != nil {
			return nil, fmt.Errorf("release %s %s: %w", c.Objects.Kind().Resource, obj.GetName(), err)
		}
	}
	if c.Adoptable != nil {
		claims.Adopt = slices.DeleteFunc(claims.Adopt, func(obj T) bool { return !c.Adoptable(obj) })
	}
	if len(claims.Adopt) == 0 {
		return claims.Keep, nil
	}
	live, err := c.Owners.Get(ctx, o.GetNamespace(), o.GetName())
	if err != nil || live.GetUID() != o.GetUID() || live.GetDeletionTimestamp() != nil {
		return claims.Keep, ignoreGone(err)
	}
	for _, obj := range claims.Adopt {
		got, err := c.Objects.Patch(ctx, obj.GetNamespace(), obj.GetName(), types.StrategicMergePatchType, AdoptPatch(o, obj.GetUID()))
		if ignoreGone(err) != nil {
			return nil, fmt.Errorf("adopt %s %s: %w", c.Objects.Kind().Resource, obj.GetName(), err)
		}
		if err == nil {
			c.Writes.Wrote(client.KeyOf(o), got.GetResourceVersion())
			claims.Keep = append(claims.Keep, obj)
		}
	}
	return claims.Keep, nil
}

// ignoreGone returns nil for errors that mean that the object is gone or was replaced by
// another of the same name, and err otherwise.
func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsInvalid(err) {
		return nil
	}
	return err
}

// Keys maps an event to the owners that it concerns: the object's controllers of the
// given kind before and after the event, or, for an object without a controller, the
// candidates whose selector matches it.
func Keys[O, T client.Object](ev client.Event[T], kind string, candidates func(namespace string) []O, selector func(O) *metav1.LabelSelector) []controller.Key {
	keys := controllers(nil, ev.Object, kind)
	if ev.Type == client.Modified {
		keys = controllers(keys, ev.Old, kind)
	}
	if len(keys) > 0 || ev.Type == client.Deleted || metav1.GetControllerOfNoCopy(ev.Object) != nil {
		return keys
	}
	for _, o := range candidates(ev.Object.GetNamespace()) {
		s, err := metav1.LabelSelectorAsSelector(selector(o))
		if err == nil && !s.Empty() && s.Matches(labels.Set(ev.Object.GetLabels())) {
			keys = append(keys, client.KeyOf(o))
		}
	}
	return keys
}

// controllers appends the key of obj's controller to keys if it is of the given kind and
// not in keys yet.
func controllers(keys []controller.Key, obj client.Object, kind string) []controller.Key {
	ref := metav1.GetControllerOfNoCopy(obj)
	if ref == nil || ref.Kind != kind {
		return keys
	}
	key := controller.Key{Namespace: obj.GetNamespace(), Name: ref.Name}
	if slices.Contains(keys, key) {
		return keys
	}
	return append(keys, key)
}

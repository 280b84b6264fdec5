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
	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/internal/controller"
)

// Claimer adopts and releases objects of type T for owners of type O. It adopts orphans
// that match an owner's selector, and releases objects that no longer do.
type Claimer[O, T client.Object] struct {
	// Cache holds the objects, with the index cluster.ByController.
	Cache *client.Cache[T]
	// Objects writes the objects.
	Objects client.Resource[T]
	// Writes holds the last write of an object for each owner: the adoptions, and what
	// the owner's controller records.
	Writes *controller.Writes
	// Adoptable, if not nil, reports whether an owner may adopt an orphan that matches its
	// selector.
	Adoptable func(O, T) bool
	// Member, if not nil, reports whether an object can belong to an owner at all, by
	// something else than its labels. Others are released and not adopted.
	Member func(O, T) bool
	// Finalizers are added to an adopted object and removed from a released one.
	Finalizers []string

	client     *client.Client
	owners     client.Resource[O]
	candidates *client.Cache[O]
	selector   func(O) *metav1.LabelSelector
}

// NewClaimer returns a Claimer. selector returns the selector of an owner.
func NewClaimer[O, T client.Object](s *cluster.Cluster, selector func(O) *metav1.LabelSelector) *Claimer[O, T] {
	objects := cluster.Of[T](s, cluster.ByController, cluster.ByOrphanage)
	return &Claimer[O, T]{
		Cache: objects, Objects: client.For[T](s.Client), Writes: controller.NewWrites(objects),
		client: s.Client, owners: client.For[O](s.Client), candidates: cluster.Of[O](s, cluster.ByNamespace), selector: selector,
	}
}

// Claim returns the objects that belong to o. selector is o's. An adopted object is
// returned as the server stored it.
//
// Before it adopts, Claim reads o from the server, because the cache may not show yet
// that o was deleted or is being deleted. Such an owner adopts nothing.
func (c *Claimer[O, T]) Claim(ctx context.Context, o O, selector labels.Selector) ([]T, error) {
	claims := Claim(o, selector, c.Owned(o), c.Cache.ByIndex(cluster.ByOrphanage, o.GetNamespace()))
	if c.Member != nil {
		claims = c.members(o, claims)
	}
	for _, obj := range claims.Release {
		_, err := c.Objects.Patch(ctx, obj.GetNamespace(), obj.GetName(), types.StrategicMergePatchType, ReleasePatch(o.GetUID(), obj.GetUID(), c.Finalizers...))
		if ignoreGone(err) != nil {
			return nil, fmt.Errorf("release %s %s: %w", c.Objects.Kind().Resource, obj.GetName(), err)
		}
	}
	if c.Adoptable != nil {
		claims.Adopt = slices.DeleteFunc(claims.Adopt, func(obj T) bool { return !c.Adoptable(o, obj) })
	}
	if len(claims.Adopt) == 0 {
		return claims.Keep, nil
	}
	live, err := c.owners.Get(ctx, o.GetNamespace(), o.GetName())
	if err != nil || live.GetUID() != o.GetUID() || live.GetDeletionTimestamp() != nil {
		return claims.Keep, ignoreGone(err)
	}
	for _, obj := range claims.Adopt {
		got, err := c.Objects.Patch(ctx, obj.GetNamespace(), obj.GetName(), types.StrategicMergePatchType, AdoptPatch(o, obj.GetUID(), c.Finalizers...))
		if ignoreGone(err) != nil {
			return nil, fmt.Errorf("adopt %s %s: %w", c.Objects.Kind().Resource, obj.GetName(), err)
		}
		if err == nil {
			c.Writes.Wrote(client.KeyOf(o), got.GetResourceVersion())
			got.SetManagedFields(nil)
			claims.Keep = append(claims.Keep, got)
		}
	}
	return claims.Keep, nil
}

// Current returns [controller.ErrStale] if o's spec is not the one that the server has.
// Caches of different kinds show different points in time: next to newer revisions, an
// older spec looks like a rollback. So before a workload begins a revision, its controller
// makes sure that the spec which asks for it is the present one.
func (c *Claimer[O, T]) Current(ctx context.Context, o O) error {
	live, err := c.owners.Get(ctx, o.GetNamespace(), o.GetName())
	switch {
	case err != nil && !apierrors.IsNotFound(err):
		return err
	case err != nil || live.GetUID() != o.GetUID():
		return fmt.Errorf("%w: %s %s was replaced or deleted", controller.ErrStale, c.owners.Kind().Resource, o.GetName())
	case live.GetGeneration() != o.GetGeneration():
		return fmt.Errorf("%w: %s %s is at generation %d, the server at %d", controller.ErrStale, c.owners.Kind().Resource, o.GetName(), o.GetGeneration(), live.GetGeneration())
	}
	return nil
}

// Complete returns [controller.ErrStale] if the server has an object of o that the cache does
// not show. It lists the objects on the server, and is for decisions that are rare.
func (c *Claimer[O, T]) Complete(ctx context.Context, o O) error {
	objects := client.Metadata(c.client, c.Objects.Kind())
	for obj, err := range objects.All(ctx, client.ListOptions{Namespace: o.GetNamespace(), LabelSelector: metav1.FormatLabelSelector(c.selector(o))}) {
		if err != nil {
			return fmt.Errorf("list %s: %w", c.Objects.Kind().Resource, err)
		}
		if _, ok := c.Cache.Get(obj.Namespace, obj.Name); !ok && metav1.IsControlledBy(obj, o) {
			return fmt.Errorf("%w: %s %s", controller.ErrStale, c.Objects.Kind().Resource, obj.Name)
		}
	}
	return nil
}

// Owned returns the objects that o controls according to the cache.
func (c *Claimer[O, T]) Owned(o O) []T {
	return c.Cache.ByIndex(cluster.ByController, string(o.GetUID()))
}

// Source returns the source that maps an event of an object to the owners that it
// concerns: its controllers before and after the event, or, for an object without a
// controller, the owners whose selector matches it.
func (c *Claimer[O, T]) Source() controller.Source { return controller.From(c.Cache, c.Keys) }

// Keys maps an event to the owners that it concerns, as Source does.
func (c *Claimer[O, T]) Keys(ev client.Event[T]) []controller.Key {
	keys := c.controllers(nil, ev.Object)
	if ev.Type != client.Added {
		keys = c.controllers(keys, ev.Old)
	}
	if len(keys) > 0 || ev.Type == client.Deleted || metav1.GetControllerOfNoCopy(ev.Object) != nil {
		return keys
	}
	for _, o := range c.candidates.ByIndex(cluster.ByNamespace, ev.Object.GetNamespace()) {
		s, err := metav1.LabelSelectorAsSelector(c.selector(o))
		if err == nil && !s.Empty() && s.Matches(labels.Set(ev.Object.GetLabels())) {
			keys = append(keys, client.KeyOf(o))
		}
	}
	return keys
}

// controllers appends the key of obj's controller to keys if it is of the owners' kind
// and not in keys yet.
func (c *Claimer[O, T]) controllers(keys []controller.Key, obj T) []controller.Key {
	ref := metav1.GetControllerOfNoCopy(obj)
	if ref == nil || ref.Kind != c.owners.Kind().GVK.Kind {
		return keys
	}
	key := controller.Key{Namespace: obj.GetNamespace(), Name: ref.Name}
	if slices.Contains(keys, key) {
		return keys
	}
	return append(keys, key)
}

// members moves the objects of claims that are no members of o to those to be released.
func (c *Claimer[O, T]) members(o O, claims Claims[T]) Claims[T] {
	out := Claims[T]{Release: claims.Release}
	for _, obj := range claims.Keep {
		switch {
		case c.Member(o, obj):
			out.Keep = append(out.Keep, obj)
		case o.GetDeletionTimestamp() == nil && obj.GetDeletionTimestamp() == nil:
			out.Release = append(out.Release, obj)
		}
	}
	for _, obj := range claims.Adopt {
		if c.Member(o, obj) {
			out.Adopt = append(out.Adopt, obj)
		}
	}
	return out
}

// ignoreGone returns nil for errors that mean that the object is gone or was replaced by
// another of the same name, and err otherwise.
func ignoreGone(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsInvalid(err) {
		return nil
	}
	return err
}

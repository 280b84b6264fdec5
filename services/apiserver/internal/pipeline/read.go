package pipeline

import (
	"context"
	"errors"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// revisionWait is how long a read waits for a revision that the cache has not reached, as in
// Kubernetes.
const revisionWait = 3 * time.Second

// Get reads an object.
func (p *Pipeline) Get(ctx context.Context, t Target, o GetOptions) (*Outcome, error) {
	k, sub, err := p.enter(ctx, "get", t, "", "")
	if err != nil {
		return nil, err
	}
	var item *watchcache.Item
	if k.Computed {
		item, err = p.compute(ctx, k, t)
	} else {
		item, err = p.read(ctx, k, t, o.ResourceVersion)
	}
	if err != nil {
		return nil, p.statusOf(ctx, t.Resource.GroupResource(), t.Name, err)
	}
	if sub != nil && sub.Scale != nil {
		return &Outcome{Other: scaleOf(k, sub.Scale, item)}, nil
	}
	return &Outcome{Item: item}, nil
}

// read returns the item, which is at least as new as the resource version requires.
func (p *Pipeline) read(ctx context.Context, k *resource.Kind, t Target, resourceVersion string) (*watchcache.Item, error) {
	rev, err := parseVersion(resourceVersion)
	if err != nil {
		return nil, err
	}
	if resourceVersion != "0" {
		if err := p.wait(ctx, k, rev); err != nil {
			return nil, err
		}
	}
	item, ok := p.place(k).Cache.Kind(k).Get(k.Key(t.Namespace, t.Name))
	if !ok {
		return nil, apierrors.NewNotFound(t.Resource.GroupResource(), t.Name)
	}
	return shown(k, item)
}

// wait waits until a kind's cache has reached rev; 0 means the store's newest revision.
func (p *Pipeline) wait(ctx context.Context, k *resource.Kind, rev store.Revision) error {
	cache := p.place(k).Cache
	if rev == 0 {
		_, err := cache.Fresh(ctx)
		return err
	}
	if cache.Revision() >= rev {
		return nil
	}
	waiting, cancel := context.WithTimeout(ctx, revisionWait)
	defer cancel()
	err := cache.WaitFor(waiting, rev)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return errTooLarge(rev, cache.Revision())
	}
	return err
}

// parseVersion parses a resource version; "" and "0" are 0.
func parseVersion(s string) (store.Revision, error) {
	if s == "" || s == "0" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil {
		return 0, apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("ListOptions").GroupKind(), "", field.ErrorList{
			field.Invalid(field.NewPath("resourceVersion"), s, err.Error()),
		})
	}
	return store.Revision(n), nil
}

// List reads a collection.
func (p *Pipeline) List(ctx context.Context, t Target, o ListOptions) (*List, error) {
	k, sub, err := p.enter(ctx, "list", t, o.LabelSelector, o.FieldSelector)
	if err != nil {
		return nil, err
	}
	part, err := projectionOf(sub, o.FieldSelector)
	if err != nil {
		return nil, err
	}
	var list *List
	if k.Computed {
		list, err = p.computeList(ctx, k, t, o)
	} else {
		list, err = p.list(ctx, k, t, o)
	}
	if err == nil && part != nil {
		err = projectItems(part, list.Items)
	}
	if err != nil {
		return nil, p.statusOf(ctx, t.Resource.GroupResource(), "", err)
	}
	return list, nil
}

func (p *Pipeline) list(ctx context.Context, k *resource.Kind, t Target, o ListOptions) (*List, error) {
	sel, err := newSelection(k, t, o.LabelSelector, o.FieldSelector, checkListOptions(o))
	if err != nil {
		return nil, err
	}
	pos, err := p.position(sel.prefix, o)
	if err != nil {
		return nil, err
	}
	snap, err := p.snapshot(ctx, k, sel.prefix, pos)
	if err != nil {
		return nil, err
	}
	out := &List{Kind: k, Revision: snap.Revision()}
	limit := o.Limit // a negative limit means none, as in Kubernetes
	if o.ResourceVersion == "0" && o.Continue == "" {
		limit = 0 // as Kubernetes' watch cache, which returns such lists in full
	}
	var last string
	var more bool
	collect := func(item *watchcache.Item) bool {
		if limit > 0 && int64(len(out.Items)) >= limit {
			more = true
			return false
		}
		last = item.Key
		if item, err = shown(k, item); err != nil {
			return false
		}
		if sel.match == nil || sel.match(item) {
			out.Items = append(out.Items, item)
		}
		return true
	}
	if sel.key != "" {
		if item, ok := snap.Get(sel.key); ok && sel.key > pos.after {
			collect(item)
		}
	} else {
		if limit <= 0 && sel.match == nil && sel.prefix == k.StorePrefix {
			out.Items = make([]*watchcache.Item, 0, snap.Len())
		}
		snap.Ascend(sel.prefix, pos.after, collect)
	}
	if err != nil {
		return nil, err
	}
	if more {
		out.Continue = encodeContinue(sel.prefix, last, out.Revision)
		if sel.match == nil {
			n := int64(snap.Count(sel.prefix, last))
			out.Remaining = &n
		}
	}
	return out, nil
}

// position is where a list starts, and in which state.
type position struct {
	after string
	rev   store.Revision
	exact bool // the state at rev; otherwise one at least as new
	any   bool // any state that the cache has
	cont  bool // continues an earlier list
}

func (p *Pipeline) position(prefix string, o ListOptions) (position, error) {
	if o.Continue != "" {
		after, rev, err := decodeContinue(o.Continue, prefix)
		if err != nil {
			return position{}, apierrors.NewBadRequest(err.Error())
		}
		if o.ResourceVersion != "" && o.ResourceVersion != "0" {
			return position{}, apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
		}
		if rev < 0 { // an inconsistent continuation of an expired list
			return position{after: after}, nil
		}
		return position{after: after, rev: rev, exact: true, cont: true}, nil
	}
	rev, err := parseVersion(o.ResourceVersion)
	if err != nil {
		return position{}, err
	}
	exact := o.ResourceVersionMatch == string(metav1.ResourceVersionMatchExact) ||
		o.ResourceVersionMatch == "" && o.Limit > 0 && rev > 0
	return position{rev: rev, exact: exact, any: o.ResourceVersion == "0"}, nil
}

// states is the state of a kind at one revision.
type states interface {
	Revision() store.Revision
	Len() int
	Get(key string) (*watchcache.Item, bool)
	Ascend(prefix, after string, f func(*watchcache.Item) bool)
	Count(prefix, after string) int
}

func (p *Pipeline) snapshot(ctx context.Context, k *resource.Kind, prefix string, pos position) (states, error) {
	cache := p.place(k).Cache.Kind(k)
	if pos.any {
		return cache.Snapshot(), nil
	}
	if err := p.wait(ctx, k, pos.rev); err != nil {
		return nil, err
	}
	if !pos.exact {
		return cache.Snapshot(), nil
	}
	if snap, ok := cache.SnapshotAt(pos.rev); ok {
		return snap, nil
	}
	snap, err := p.storeSnapshot(ctx, p.stored(k), prefix, pos)
	if errors.Is(err, store.ErrCompacted) && pos.cont {
		return nil, errExpiredContinue(prefix, pos.after)
	}
	return snap, err
}

// checkListOptions applies Kubernetes' rules to combinations of options.
func checkListOptions(o ListOptions) error {
	var errs field.ErrorList
	if match := metav1.ResourceVersionMatch(o.ResourceVersionMatch); match != "" {
		path := field.NewPath("resourceVersionMatch")
		if o.ResourceVersion == "" {
			errs = append(errs, field.Forbidden(path, "resourceVersionMatch is forbidden unless resourceVersion is provided"))
		}
		if o.Continue != "" {
			errs = append(errs, field.Forbidden(path, "resourceVersionMatch is forbidden when continue is provided"))
		}
		if match != metav1.ResourceVersionMatchExact && match != metav1.ResourceVersionMatchNotOlderThan {
			errs = append(errs, field.NotSupported(path, match, []metav1.ResourceVersionMatch{metav1.ResourceVersionMatchExact, metav1.ResourceVersionMatchNotOlderThan, ""}))
		}
		if match == metav1.ResourceVersionMatchExact && o.ResourceVersion == "0" {
			errs = append(errs, field.Forbidden(path, `resourceVersionMatch "exact" is forbidden for resourceVersion "0"`))
		}
	}
	if len(errs) > 0 {
		return apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("ListOptions").GroupKind(), "", errs)
	}
	return nil
}

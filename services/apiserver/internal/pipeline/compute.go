package pipeline

import (
	"cmp"
	"context"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// compute reads an object of a computed kind.
func (p *Pipeline) compute(ctx context.Context, k *resource.Kind, t Target) (*watchcache.Item, error) {
	source := k.Source
	if source == nil {
		return nil, errUncomputed(k)
	}
	obj, err := source.Get(ctx, t.Namespace, t.Name)
	if err != nil {
		return nil, err
	}
	return computed(k, obj)
}

// computeList reads a collection of a computed kind. It has no revision and is never in pieces.
func (p *Pipeline) computeList(ctx context.Context, k *resource.Kind, t Target, o ListOptions) (*List, error) {
	sel, err := newSelection(k, t, o.LabelSelector, o.FieldSelector, checkListOptions(o))
	if err != nil {
		return nil, err
	}
	source := k.Source
	if source == nil {
		return nil, errUncomputed(k)
	}
	selector := labels.Everything()
	if o.LabelSelector != "" {
		if selector, err = labels.Parse(o.LabelSelector); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	}
	objs, err := source.List(ctx, t.Namespace, selector)
	if err != nil {
		return nil, err
	}
	out := &List{Kind: k, Items: make([]*watchcache.Item, 0, len(objs))}
	for _, obj := range objs {
		item, err := computed(k, obj)
		if err != nil {
			return nil, err
		}
		if strings.HasPrefix(item.Key, sel.prefix) && (sel.key == "" || sel.key == item.Key) && (sel.match == nil || sel.match(item)) {
			out.Items = append(out.Items, item)
		}
	}
	slices.SortFunc(out.Items, func(a, b *watchcache.Item) int { return cmp.Compare(a.Key, b.Key) })
	return out, nil
}

// computed returns an item that the fronts show.
func computed(k *resource.Kind, obj resource.Object) (*watchcache.Item, error) {
	raw, err := obj.Marshal()
	if err != nil {
		return nil, err
	}
	return watchcache.NewItem(k, k.Key(obj.GetNamespace(), obj.GetName()), obj, raw), nil
}

func errUncomputed(k *resource.Kind) error {
	return apierrors.NewServiceUnavailable("this apiserver does not compute " + k.GVR().GroupResource().String())
}

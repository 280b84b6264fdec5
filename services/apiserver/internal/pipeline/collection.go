package pipeline

import (
	"context"
	"errors"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// deleteTogether is how many objects of a collection are deleted in one commit.
const deleteTogether = 200

// DeleteCollection deletes what a list with the same selectors returns.
func (p *Pipeline) DeleteCollection(ctx context.Context, t Target, l ListOptions, o DeleteOptions) (*List, error) {
	k, _, err := p.enter(ctx, "deletecollection", t, l.LabelSelector, l.FieldSelector)
	if err != nil {
		return nil, err
	}
	if err := checkDeleteOptions(o); err != nil {
		return nil, err
	}
	if o.RequestID != "" {
		return nil, errRequestID("deletecollection")
	}
	list, err := p.list(ctx, k, t, l)
	if err != nil {
		return nil, p.statusOf(ctx, t.Resource.GroupResource(), "", err)
	}
	out := &List{Kind: k, Revision: list.Revision, Continue: list.Continue, Remaining: list.Remaining, Warnings: deleteWarnings(k, o)}
	for rest := list.Items; len(rest) > 0; {
		n := min(len(rest), deleteTogether)
		if out.Items, err = p.deleteItems(ctx, k, t, rest[:n], o, out.Items); err != nil {
			return nil, err
		}
		rest = rest[n:]
	}
	return out, nil
}

func (p *Pipeline) deleteItems(ctx context.Context, k *resource.Kind, t Target, items []*watchcache.Item, o DeleteOptions, out []*watchcache.Item) ([]*watchcache.Item, error) {
	changes := make([]*change, 0, len(items))
	for _, item := range items {
		target := t
		target.Namespace, target.Name = item.Object().GetNamespace(), item.Object().GetName()
		c, err := p.deletion(ctx, k, target, o)
		if err != nil {
			return out, p.statusOf(ctx, t.Resource.GroupResource(), target.Name, err)
		}
		changes = append(changes, c)
	}
	p.run(ctx, changes...)
	var failed error
	for i, c := range changes {
		switch {
		case c.err == nil:
			out = append(out, items[i]) // as it was read, as in Kubernetes
		case !apierrors.IsNotFound(c.err): // an object that is already gone is not an error
			failed = errors.Join(failed, c.err)
		}
	}
	var status *apierrors.StatusError
	if errors.As(failed, &status) {
		return out, status
	}
	return out, failed
}

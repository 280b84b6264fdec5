package pipeline

import (
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
	"keelson.dev/services/internal/quota"
)

var quotaGVR = corev1.SchemeGroupVersion.WithResource("resourcequotas")

// chargeQuotas charges a write to the quotas of its namespace, which must leave room for
// it. It is the last check of a write: what follows fails only where another writer came
// first, or the store. See package quota.
//
// A request charges once: when its write is worked out anew, what it has charged counts.
// Each write of a batch charges on its own.
func (p *Pipeline) chargeQuotas(c *change, obj, old resource.Object) error {
	k := p.cfg.Table.ByResource(quotaGVR)
	if k == nil || !c.kind.Namespaced || !quota.Counted(c.gr()) || !charges(c, obj, old) {
		return nil
	}
	if any, _ := p.quotasOf(c, k, obj); !any {
		return nil
	}
	// What covers the object may have changed before this request.
	if err := p.wait(c.ctx, k, 0); err != nil {
		return err
	}
	_, names := p.quotasOf(c, k, obj)
	if len(names) == 0 {
		return nil
	}
	if old == nil && c.names == 0 {
		if err := p.alreadyThere(c, obj); err != nil {
			return err
		}
	}
	// The writers of this apiserver take turns, so that they do not make each other's
	// writes fail.
	turn := p.turns.take(obj.GetNamespace())
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
	for _, name := range names {
		if err := p.chargeQuota(c, k, name, obj, old); err != nil {
			return err
		}
	}
	return nil
}

// quotasOf lists the quotas that cover an object, as the cache has them, and reports
// whether its namespace has any.
func (p *Pipeline) quotasOf(c *change, k *resource.Kind, obj resource.Object) (any bool, names []string) {
	p.place(k).Cache.Kind(k).Snapshot().Ascend(k.Prefix(obj.GetNamespace()), "", func(item *watchcache.Item) bool {
		any = true
		if q, ok := item.Object.(*corev1.ResourceQuota); ok && quota.Covers(q, c.gr(), obj) {
			names = append(names, q.Name)
		}
		return true
	})
	return any, names
}

// charges reports whether a write can change what its object uses.
func charges(c *change, obj, old resource.Object) bool {
	if old == nil {
		return c.target.Subresource == ""
	}
	switch o := obj.(type) {
	case *corev1.Pod:
		was, ok := old.(*corev1.Pod)
		return c.target.Subresource == "resize" || c.target.Subresource == "" && ok && quota.Terminating(o) != quota.Terminating(was)
	case *corev1.Service, *corev1.PersistentVolumeClaim:
		return c.target.Subresource == ""
	}
	return false
}

// alreadyThere refuses to create what is there before it is charged for nothing.
func (p *Pipeline) alreadyThere(c *change, obj resource.Object) error {
	key := c.kind.Key(obj.GetNamespace(), obj.GetName())
	stored, place := p.stored(c.kind), p.place(c.kind)
	if _, ok := place.Cache.Kind(stored).Get(key); !ok {
		return nil
	}
	entry, _, err := place.Store.Get(c.ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	c.key = key
	return p.errExists(c, &entry)
}

// chargeQuota charges one quota with a write of its own.
func (p *Pipeline) chargeQuota(c *change, k *resource.Kind, name string, obj, old resource.Object) error {
	var err error
	for range budgetRounds {
		var charged corev1.ResourceList
		charged, err = p.tryCharge(c, k, name, obj, old)
		if err == nil && len(charged) > 0 {
			if c.charged == nil {
				c.charged = map[string]corev1.ResourceList{}
			}
			c.charged[name] = quota.Add(c.charged[name], charged)
		}
		if !outrun(err) {
			break
		}
	}
	switch {
	case apierrors.IsNotFound(err):
		return nil // deleted: it limits nothing any more
	case outrun(err):
		return apierrors.NewTimeoutError(fmt.Sprintf("couldn't update ResourceQuota %q due to conflicts", name), budgetRetrySeconds)
	}
	return err
}

func (p *Pipeline) tryCharge(c *change, k *resource.Kind, name string, obj, old resource.Object) (charged corev1.ResourceList, err error) {
	status := k.Subresources["status"]
	b := &change{
		ctx: c.ctx, kind: k, rules: status.View, user: itself,
		target: Target{Resource: quotaGVR, Namespace: obj.GetNamespace(), Name: name, Subresource: "status"},
		key:    k.Key(obj.GetNamespace(), name),
		opts:   WriteOptions{DryRun: c.opts.DryRun, FieldManager: ownManager},
	}
	var before any // an untyped nil where there is none
	if old != nil {
		before = old
	}
	b.plan = func(cur *watchcache.Item) (*step, error) {
		charged = nil
		if cur == nil {
			return nil, apierrors.NewNotFound(quotaGVR.GroupResource(), name)
		}
		q, ok := cur.Object.DeepCopyObject().(*corev1.ResourceQuota)
		if !ok {
			return nil, fmt.Errorf("%T is no quota", cur.Object)
		}
		charge, err := quota.Charge(q, c.gr(), obj, before, p.cfg.Now())
		if err != nil {
			return nil, c.admissionError(obj, err)
		}
		charge = quota.Less(charge, c.charged[name])
		if err := quota.Exceeded(q, charge); err != nil {
			return nil, c.admissionError(obj, err)
		}
		if len(charge) == 0 {
			return nil, errNothing
		}
		q.Status.Used = quota.Add(q.Status.Used, charge)
		s, err := p.planUpdate(b, cur, q, true)
		charged = charge
		return s, err
	}
	p.run(c.ctx, b)
	switch {
	case b.err == nil:
		return charged, nil
	case errors.Is(b.err, errNothing):
		return nil, nil
	}
	return nil, b.err
}

// errNothing ends a charge of nothing: there is nothing to write.
var errNothing error = apierrors.NewGone("nothing to charge")

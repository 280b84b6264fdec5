package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
	"keelson.dev/services/internal/quota"
)

const (
	// maxChargeTime bounds how long a write of a batch waits for the charges of others: a charge
	// is lost if the accounting period ends before the write is stored. See run.
	maxChargeTime = 100 * time.Millisecond
	// lostWait is the pause before a quota that a lost charge fills is tried again, budgetRounds
	// times: the count that ended the period is about to take the lost charge back.
	lostWait = 100 * time.Millisecond
)

var quotaGVR = corev1.SchemeGroupVersion.WithResource("resourcequotas")

// chargeQuotas charges a write to the quotas of its namespace, and fails if one of them would be
// exceeded. It is the last check of a write: after it, the write can fail only because of a
// conflict, its size or the store. See package quota.
//
// If the write is planned again, what the request has charged before is taken into account. Each
// write of a batch is charged separately.
func (p *Pipeline) chargeQuotas(c *change, obj, old resource.Object) error {
	k := p.cfg.Table.ByResource(quotaGVR)
	if k == nil || !c.kind.Namespaced || !quota.Counted(c.gr()) || !quota.MayGrow(c.target.Subresource, obj, before(old)) {
		return nil
	}
	if exist, _ := p.quotasOf(c, k, obj); !exist {
		return nil
	}
	// The cache must contain every change of a quota that preceded this request.
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
	// Within this apiserver the charges of a namespace are serialized, so that they do not
	// conflict with each other.
	if err := p.enterPeriod(c); err != nil {
		return err
	}
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

// quotasOf returns the names of the quotas in the cache that cover the object, and reports
// whether the namespace has any quota.
func (p *Pipeline) quotasOf(c *change, k *resource.Kind, obj resource.Object) (exist bool, names []string) {
	p.place(k).Cache.Kind(k).Snapshot().Ascend(k.Prefix(obj.GetNamespace()), "", func(item *watchcache.Item) bool {
		exist = true
		if q, ok := item.Object().(*corev1.ResourceQuota); ok && quota.Covers(q, c.gr(), obj) {
			names = append(names, q.Name)
		}
		return true
	})
	return exist, names
}

// before returns the old state of an object, which is an untyped nil for a create.
func before(old resource.Object) any {
	if old == nil {
		return nil
	}
	return old
}

// alreadyThere returns AlreadyExists if the object exists, so that a create that is bound to fail
// is not charged.
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

// chargeQuota charges one quota, retrying after conflicts, and notes the charge in c.charged.
func (p *Pipeline) chargeQuota(c *change, k *resource.Kind, name string, obj, old resource.Object) error {
	var err error
	for range budgetRounds {
		var charged corev1.ResourceList
		var full bool
		charged, full, err = p.tryCharge(c, k, name, obj, old)
		if full && c.lost {
			if werr := pause(c.ctx, lostWait); werr != nil {
				return werr
			}
			continue
		}
		if err == nil && len(charged) > 0 {
			if c.charged == nil {
				c.charged, c.chargedAt = map[string]corev1.ResourceList{}, p.cfg.Now()
			}
			c.charged[name] = quota.Add(c.charged[name], charged)
		}
		if !outrun(err) {
			break
		}
	}
	switch {
	case apierrors.IsNotFound(err):
		return nil // the quota has been deleted
	case outrun(err):
		return apierrors.NewTimeoutError(fmt.Sprintf("couldn't update ResourceQuota %q due to conflicts", name), budgetRetrySeconds)
	}
	return err
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// tryCharge charges one quota by a write of its status, and returns what it charged. full reports
// whether the quota would be exceeded.
func (p *Pipeline) tryCharge(c *change, k *resource.Kind, name string, obj, old resource.Object) (charged corev1.ResourceList, full bool, err error) {
	b := p.ownStatusChange(c, k, obj.GetNamespace(), name)
	b.plan = func(cur *watchcache.Item) (*step, error) {
		charged, full = nil, false
		if cur == nil {
			return nil, apierrors.NewNotFound(quotaGVR.GroupResource(), name)
		}
		q, ok := cur.Object().DeepCopyObject().(*corev1.ResourceQuota)
		if !ok {
			return nil, fmt.Errorf("resourcequotas %q: expected a ResourceQuota, got %T", name, cur.Object())
		}
		charge, err := quota.Charge(q, c.gr(), obj, before(old), p.cfg.Now())
		if err != nil {
			return nil, c.admissionError(obj, err)
		}
		charge = quota.Less(charge, c.charged[name])
		if err := quota.Exceeded(q, charge); err != nil {
			full = true
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
		return charged, false, nil
	case errors.Is(b.err, errNothing):
		return nil, false, nil
	}
	return nil, full, b.err
}

// errNothing ends a charge that would be empty, so that nothing is written.
var errNothing error = apierrors.NewGone("nothing to charge")

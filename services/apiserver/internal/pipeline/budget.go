package pipeline

import (
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/proto/apistatus"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

const (
	// budgetRounds is the number of attempts to charge a budget or a quota. Each attempt
	// ends after maxTries conflicts, and each conflict means that another write succeeded.
	budgetRounds = 10
	// budgetRetrySeconds is the Retry-After of a refusal because of conflicts.
	budgetRetrySeconds = 10
)

// charge takes one removal from the budget that covers the object. It succeeds without a write if
// no budget does, or if the budget lets the object go uncounted. It reports whether a budget was
// written.
//
// The write depends on the revision of the budget that was read. Concurrent removals, through any
// apiservers, therefore see each other's charges, and no more objects are removed than the budget
// allows. If the removal fails after the charge, the budget's controller takes the charge back, as
// in Kubernetes. It ends the accounting period first, so that a removal which is still in flight
// fails and is charged again; see package quota.
//
// A decision based on the object's state is still valid when the object is deleted, because the
// delete depends on the object's revision: if the object has changed, the removal is planned again.
func (p *Pipeline) charge(c *change, b *resource.Budget, obj resource.Object) (charged bool, err error) {
	if b == nil || b.Exempt(obj) {
		return false, nil
	}
	budget, err := p.budgetOf(c, b, obj)
	if err != nil || budget == nil || b.Waives(budget, obj) {
		return false, err
	}
	if err := p.enterPeriod(c); err != nil {
		return false, err
	}
	for range budgetRounds {
		if err = p.chargeBudget(c, b, budget.GetName(), obj); !outrun(err) {
			if apierrors.IsNotFound(err) {
				return false, nil // the budget has been deleted
			}
			return err == nil, err
		}
	}
	kind := p.cfg.Table.ByResource(b.Resource).GVK.Kind
	return false, apierrors.NewTimeoutError(fmt.Sprintf("couldn't update %s %q due to conflicts", kind, budget.GetName()), budgetRetrySeconds)
}

// outrun reports whether a write failed only because of conflicts with other writers, so that
// it may be tried again.
func outrun(err error) bool {
	return apierrors.IsConflict(err) && !apierrors.HasStatusCause(err, apistatus.CauseFenced)
}

// budgetOf returns the budget that covers the object, or nil if there is none. It fails if there
// are several.
func (p *Pipeline) budgetOf(c *change, b *resource.Budget, obj resource.Object) (resource.Object, error) {
	k := p.cfg.Table.ByResource(b.Resource)
	if k == nil {
		return nil, nil
	}
	// The cache must contain every budget that was created before this request.
	if err := p.wait(c.ctx, k, 0); err != nil {
		return nil, err
	}
	var found resource.Object
	more := false
	p.place(k).Cache.Kind(k).Snapshot().Ascend(k.Prefix(obj.GetNamespace()), "", func(item *watchcache.Item) bool {
		if !b.Covers(item.Object(), obj) {
			return true
		}
		more = found != nil
		found = item.Object()
		return !more
	})
	if more {
		return nil, b.Several
	}
	return found, nil
}

// chargeBudget takes one removal from a budget by a write of its status.
func (p *Pipeline) chargeBudget(c *change, b *resource.Budget, name string, obj resource.Object) error {
	w := p.ownStatusChange(c, p.cfg.Table.ByResource(b.Resource), obj.GetNamespace(), name)
	w.plan = func(cur *watchcache.Item) (*step, error) {
		if cur == nil {
			return nil, apierrors.NewNotFound(b.Resource.GroupResource(), name)
		}
		budget := cur.Object().DeepCopyObject().(resource.Object)
		if err := b.Charge(budget, obj, p.cfg.Now()); err != nil {
			return nil, err
		}
		return p.planUpdate(w, cur, budget, true)
	}
	p.run(c.ctx, w)
	return w.err
}

// ownStatusChange returns a change, without its plan, of an object's status that the apiserver
// makes on behalf of the request c.
func (p *Pipeline) ownStatusChange(c *change, k *resource.Kind, namespace, name string) *change {
	return &change{
		ctx: c.ctx, kind: k, rules: k.Subresources["status"].View, user: itself,
		target: Target{Resource: k.GVR(), Namespace: namespace, Name: name, Subresource: "status"},
		key:    k.Key(namespace, name),
		opts:   WriteOptions{DryRun: c.opts.DryRun, FieldManager: ownManager},
	}
}

// itself is the user of the writes that the apiserver makes on behalf of a request, such as
// charges, and ownManager their field manager, as in Kubernetes.
var itself = request.User{Name: "system:apiserver", Groups: []string{"system:masters", "system:authenticated"}}

const ownManager = "kube-apiserver"

package pipeline

import (
	"context"
	"fmt"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// Update replaces an object or one of its subresources.
func (p *Pipeline) Update(ctx context.Context, t Target, b Body, o WriteOptions) (*Outcome, error) {
	growStack()
	c, err := p.newUpdate(ctx, t, b, o)
	if err != nil {
		return nil, p.statusOf(ctx, t.Resource.GroupResource(), t.Name, err)
	}
	p.run(ctx, c)
	return c.out, c.err
}

func (p *Pipeline) newUpdate(ctx context.Context, t Target, b Body, o WriteOptions) (*change, error) {
	c, sub, err := p.newChange(ctx, "update", t, o)
	if err != nil {
		return nil, err
	}
	if err := checkWriteOptions("UpdateOptions", o); err != nil {
		return nil, err
	}
	if sub != nil && sub.Scale != nil {
		c.plan = func(cur *watchcache.Item) (*step, error) {
			return p.planScale(c, sub.Scale, cur, func(*scaled) (*scaled, error) { return p.decodeScale(c, b) })
		}
		return c, nil
	}
	decode := func() (resource.Object, error) {
		obj, warnings, err := p.decode(c.kind, c.kind.New, b, o)
		if err != nil {
			return nil, err
		}
		c.warn = warnings
		return obj, checkNames(c, obj)
	}
	c.shares = canonical(b.Type)
	first, err := decode()
	if err != nil {
		p.fail(c, err) // with the warnings so far
		return c, nil
	}
	c.plan = func(cur *watchcache.Item) (*step, error) {
		obj := first
		if first = nil; obj == nil { // modified by the previous try
			if obj, err = decode(); err != nil {
				return nil, err
			}
		}
		if cur == nil {
			return p.planMissing(c, obj, true)
		}
		if uid := obj.GetUID(); uid != "" && uid != cur.Object().GetUID() {
			return nil, errPrecondition(c, fmt.Sprintf("Precondition failed: UID in precondition: %v, UID in object meta: %v", uid, cur.Object().GetUID()))
		}
		return p.planUpdate(c, cur, obj, true)
	}
	return c, nil
}

// newChange returns a change of an existing object, after authorizing it.
func (p *Pipeline) newChange(ctx context.Context, verb string, t Target, o WriteOptions) (*change, *resource.Subresource, error) {
	k, sub, err := p.enter(ctx, verb, t, "", "")
	if err != nil {
		return nil, nil, err
	}
	if err := checkRequestID(o); err != nil {
		return nil, nil, err
	}
	c := &change{
		ctx: ctx, target: t, kind: k, rules: &k.Rules, opts: o,
		user: request.UserFrom(ctx), key: k.Key(t.Namespace, t.Name), request: requestKey(ctx, verb, t, o),
	}
	if sub != nil && sub.Scale != nil {
		c.answer = func(out *Outcome) { out.Item, out.Other = nil, scaleOf(k, sub.Scale, out.Item) }
	}
	if sub != nil && sub.View != nil {
		c.rules = sub.View
	}
	return c, sub, nil
}

// checkNames compares the object's namespace and name with those of the request.
func checkNames(c *change, obj resource.Object) error {
	if err := checkPlace(c.kind, c.target, obj); err != nil {
		return err
	}
	switch obj.GetName() {
	case c.target.Name:
	case "":
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s based on URL) was undeterminable: name must be provided", c.target.Name))
	default:
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", obj.GetName(), c.target.Name))
	}
	return nil
}

// planMissing plans an update of an object that does not exist, which creates it for some kinds.
func (p *Pipeline) planMissing(c *change, obj resource.Object, track bool) (*step, error) {
	if uid := obj.GetUID(); uid != "" && track {
		return nil, errPrecondition(c, fmt.Sprintf("Precondition failed: UID in precondition: %v, UID in object meta: ", uid))
	}
	if !c.rules.CreateOnUpdate || c.target.Subresource != "" {
		return nil, apierrors.NewNotFound(c.gr(), c.target.Name)
	}
	t := c.target
	if err := p.Authorize(c.ctx, "create", t); err != nil {
		return nil, err
	}
	if obj.GetResourceVersion() != "" && obj.GetResourceVersion() != "0" {
		return nil, errConflict(c.gr(), c.target.Name)
	}
	return p.planCreate(c, obj, track)
}

// errPrecondition returns Kubernetes' error for a failed precondition of the storage.
func errPrecondition(c *change, message string) error {
	return apierrors.NewConflict(c.gr(), c.target.Name, fmt.Errorf(
		"StorageError: invalid object, Code: 4, Key: %s, ResourceVersion: 0, AdditionalErrorMsg: %s", c.key, message))
}

// planUpdate completes and checks the new state of an existing object. The change must own obj;
// cur is shared.
func (p *Pipeline) planUpdate(c *change, cur *watchcache.Item, obj resource.Object, track bool) (*step, error) {
	old := cur.Object()
	if err := checkVersion(c, cur, obj); err != nil {
		return nil, err
	}
	obj.SetResourceVersion(old.GetResourceVersion())
	if c.rules.Default != nil {
		c.rules.Default(obj)
	}
	if track {
		p.track(c, old, obj)
	}
	dedupOwners(obj, func(w string) { c.warn = append(c.warn, w) })
	a := c.attributes(admission.Update, obj, old)
	if err := p.cfg.Admission.Admit(c.ctx, a); err != nil {
		return nil, c.admissionError(obj, err)
	}
	p.carryOver(c, obj, old)
	s := &step{obj: obj, expect: cur.Revision, keepTrace: c.target.Subresource == "status"}
	if err := p.completeUpdate(c, s, a); err != nil {
		s.settled(false)
		return nil, err
	}
	return s, nil
}

// checkVersion compares the object's resourceVersion with the current one (optimistic
// concurrency).
func checkVersion(c *change, cur *watchcache.Item, obj resource.Object) error {
	asked := obj.GetResourceVersion()
	if asked == "" || asked == "0" {
		if c.rules.NoUnconditionalUpdate {
			gk := schema.GroupKind{Group: c.target.Resource.Group, Kind: c.target.Resource.Resource}
			return apierrors.NewInvalid(gk, c.target.Name, field.ErrorList{
				field.Invalid(metadataPath.Child("resourceVersion"), 0, "must be specified for an update"),
			})
		}
		return nil
	}
	rev, err := strconv.ParseUint(asked, 10, 63)
	if err != nil {
		return errPlain(err)
	}
	if store.Revision(rev) != cur.Revision {
		return errConflict(c.gr(), c.target.Name)
	}
	return nil
}

// carryOver restores what no update may change, and increments the generation if necessary.
func (p *Pipeline) carryOver(c *change, obj, old resource.Object) {
	obj.SetGeneration(old.GetGeneration())
	if c.rules.PrepareUpdate != nil {
		c.rules.PrepareUpdate(obj, old)
	}
	if obj.GetUID() == "" {
		obj.SetUID(old.GetUID())
	}
	obj.SetSelfLink("")
	obj.SetCreationTimestamp(old.GetCreationTimestamp())
	if ts := old.GetDeletionTimestamp(); ts != nil {
		obj.SetDeletionTimestamp(ts)
	}
	if g := old.GetDeletionGracePeriodSeconds(); g != nil && obj.GetDeletionGracePeriodSeconds() == nil {
		obj.SetDeletionGracePeriodSeconds(g)
	}
	if !c.kind.NoGeneration && c.target.Subresource != "status" && p.specChanged(c, obj, old) {
		obj.SetGeneration(old.GetGeneration() + 1)
	}
}

// completeUpdate validates the update. If it removed the last finalizer of an object that is
// being deleted, it becomes a delete.
func (p *Pipeline) completeUpdate(c *change, s *step, a *admission.Attributes) error {
	obj, old := s.obj, a.Old
	if claimer := c.kind.Claimer; claimer != nil && c.target.Subresource == "" {
		finish, err := claimer.Claim(c.ctx, obj, old, c.opts.DryRun)
		if finish != nil {
			s.finish = append(s.finish, finish)
		}
		if err != nil {
			return err
		}
	}
	if err := validateChanged(c.kind, c.rules, obj, old); err != nil {
		return err
	}
	s.onlyTimes = onlyTimes(obj, old)
	if err := p.cfg.Admission.Validate(c.ctx, a); err != nil {
		return c.admissionError(obj, err)
	}
	if err := p.chargeQuotas(c, obj, old); err != nil {
		return err
	}
	if c.rules.Warnings != nil {
		c.warn = append(c.warn, c.rules.Warnings(obj, old)...)
	}
	if emptied(c.kind, obj, old) {
		s.gone, s.obj, s.last = true, nil, obj
	}
	return nil
}

// emptied reports whether nothing keeps an object any more that is being deleted.
func emptied(k *resource.Kind, obj, old resource.Object) bool {
	if old.GetDeletionTimestamp() == nil || len(obj.GetFinalizers()) > 0 {
		return false
	}
	if g := old.GetDeletionGracePeriodSeconds(); g != nil && *g > 0 {
		return false
	}
	return k.Held == nil || !k.Held(obj)
}

// onlyTimes reports whether the managed fields differ, and only in their timestamps.
func onlyTimes(obj, old metav1.Object) bool {
	a, b := obj.GetManagedFields(), old.GetManagedFields()
	if len(a) != len(b) {
		return false
	}
	differs := false
	for i := range a {
		x, y := &a[i], &b[i]
		if x.Manager != y.Manager || x.Operation != y.Operation || x.APIVersion != y.APIVersion ||
			x.Subresource != y.Subresource || x.FieldsType != y.FieldsType || !sameFields(x.FieldsV1, y.FieldsV1) {
			return false
		}
		differs = differs || !x.Time.Equal(y.Time)
	}
	return differs
}

func sameFields(a, b *metav1.FieldsV1) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Equal(*b)
}

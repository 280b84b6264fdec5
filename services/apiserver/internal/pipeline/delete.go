package pipeline

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"

	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// Delete removes an object or starts its graceful deletion.
func (p *Pipeline) Delete(ctx context.Context, t Target, o DeleteOptions) (*Outcome, error) {
	growStack()
	c, err := p.newDelete(ctx, t, o)
	if err != nil {
		return nil, p.statusOf(ctx, t.Resource.GroupResource(), t.Name, err)
	}
	p.run(ctx, c)
	return c.out, c.err
}

func (p *Pipeline) newDelete(ctx context.Context, t Target, o DeleteOptions) (*change, error) {
	k, _, err := p.enter(ctx, "delete", t, "", "")
	if err != nil {
		return nil, err
	}
	return p.deletion(ctx, k, t, o)
}

// deletion returns the change of a delete that the caller has authorized.
func (p *Pipeline) deletion(ctx context.Context, k *resource.Kind, t Target, o DeleteOptions) (*change, error) {
	if err := checkDeleteOptions(o); err != nil {
		return nil, err
	}
	if err := checkRequestID(o.WriteOptions); err != nil {
		return nil, err
	}
	if o.RequestID != "" && (o.Preconditions == nil || o.Preconditions.UID == nil) {
		return nil, errRequestID("a delete without the uid as its precondition")
	}
	c := &change{
		ctx: ctx, target: t, kind: k, rules: &k.Rules, opts: o.WriteOptions,
		user: requestUser(ctx), key: k.Key(t.Namespace, t.Name), shares: true,
		request: requestKey(ctx, "delete", t, o.WriteOptions),
	}
	c.plan = func(cur *watchcache.Item) (*step, error) {
		c.warn = deleteWarnings(k, o)
		return p.planDelete(c, cur, o)
	}
	return c, nil
}

// deleteWarnings returns the warnings that the options cause.
func deleteWarnings(k *resource.Kind, o DeleteOptions) []string {
	if k.NoPropagationWarning == "" || o.PropagationPolicy != nil || o.OrphanDependents != nil {
		return nil
	}
	return []string{k.NoPropagationWarning}
}

func checkDeleteOptions(o DeleteOptions) error {
	errs := validation.ValidateDeleteOptions(&metav1.DeleteOptions{
		OrphanDependents:  o.OrphanDependents,
		PropagationPolicy: o.PropagationPolicy,
	})
	if len(errs) > 0 {
		return apierrors.NewInvalid(metav1.SchemeGroupVersion.WithKind("DeleteOptions").GroupKind(), "", errs)
	}
	return nil
}

// planDelete decides whether the object is removed at once or marked as being deleted.
func (p *Pipeline) planDelete(c *change, cur *watchcache.Item, o DeleteOptions) (*step, error) {
	if s, err := p.goneAlready(c, cur, o); s != nil || err != nil {
		return s, err
	}
	if cur == nil {
		return nil, apierrors.NewNotFound(c.gr(), c.target.Name)
	}
	old := cur.Object()
	if err := preconditions(c, old, o.Preconditions); err != nil {
		return nil, err
	}
	if err := p.cfg.Admission.Validate(c.ctx, c.attributes(admission.Delete, nil, old)); err != nil {
		return nil, c.admissionError(old, err)
	}
	s := &step{expect: cur.Revision}
	grace, pending := p.grace(c.kind, old, o.GracePeriodSeconds)
	if pending {
		return p.asIs(c, cur, s), nil
	}
	finalizers := gcFinalizers(c.kind, old, o)
	held := len(finalizers) > 0 || c.kind.Held != nil && c.kind.Held(old)
	s.gone = grace == 0 && !held
	switch {
	case s.gone && !c.kind.ReturnsDeleted:
		s.answer = func(out *Outcome) { out.Status = deleted(c, out.Item.Object()) }
		return s, nil
	case s.gone && c.kind.Graceful == nil:
		return s, nil // the response is the object as it was
	}
	if s.gone {
		// It is only returned, so it may share everything below its fields with the old one.
		s.last = shallowCopy(old)
		s.last.SetFinalizers(finalizers)
		p.mark(c.kind, s.last, grace)
		return s, nil
	}
	obj, ok := old.DeepCopyObject().(resource.Object)
	if !ok {
		return nil, fmt.Errorf("%T cannot be copied", old)
	}
	obj.SetFinalizers(finalizers)
	p.mark(c.kind, obj, grace)
	s.obj = obj
	return s, nil
}

// shallowCopy returns a copy of the object that shares with it what its fields refer to. Its
// fields may be assigned, but what they refer to must not be changed.
func shallowCopy(obj resource.Object) resource.Object {
	from := reflect.ValueOf(obj).Elem()
	to := reflect.New(from.Type())
	to.Elem().Set(from)
	return to.Interface().(resource.Object)
}

// deleted returns the Status for an object that was removed. Its kind is the resource, as in
// Kubernetes.
func deleted(c *change, last resource.Object) *metav1.Status {
	gr := c.gr()
	return &metav1.Status{Status: metav1.StatusSuccess, Details: &metav1.StatusDetails{
		Name: last.GetName(), Group: gr.Group, Kind: gr.Resource, UID: last.GetUID(),
	}}
}

// asIs leaves the object unchanged, because its deletion is already under way.
func (p *Pipeline) asIs(c *change, cur *watchcache.Item, s *step) *step {
	s.obj = cur.Object().DeepCopyObject().(resource.Object)
	return s
}

// preconditions checks the preconditions of a delete.
func preconditions(c *change, old resource.Object, want *metav1.Preconditions) error {
	if want == nil {
		return nil
	}
	gr := c.gr()
	gr.Resource = c.kind.GVK.Kind
	if want.UID != nil && *want.UID != old.GetUID() {
		return apierrors.NewConflict(gr, old.GetName(), fmt.Errorf("the UID in the precondition (%s) does not match the UID in record (%s). The object might have been deleted and then recreated", *want.UID, old.GetUID()))
	}
	if want.ResourceVersion != nil && *want.ResourceVersion != old.GetResourceVersion() {
		return apierrors.NewConflict(gr, old.GetName(), fmt.Errorf("the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The object might have been modified", *want.ResourceVersion, old.GetResourceVersion()))
	}
	return nil
}

// grace returns how long the object's deletion may take, in seconds. pending is true if a
// deletion is already under way and remains unchanged.
func (p *Pipeline) grace(k *resource.Kind, old resource.Object, requested *int64) (seconds int64, pending bool) {
	if requested != nil && *requested < 0 {
		one := int64(1)
		requested = &one
	}
	if k.Graceful == nil {
		return 0, false
	}
	if old.GetDeletionTimestamp() != nil {
		running := old.GetDeletionGracePeriodSeconds()
		if running == nil || *running == 0 {
			return 0, false
		}
		if requested == nil || *requested >= max(*running, 1) {
			return 0, true
		}
		return *requested, false // it can only become shorter
	}
	if seconds, graceful := k.Graceful(old, requested); graceful {
		return seconds, false
	}
	return 0, false
}

// mark sets the metadata of an object that is being deleted.
func (p *Pipeline) mark(k *resource.Kind, obj resource.Object, grace int64) {
	now := p.cfg.Now()
	before := obj.GetDeletionTimestamp()
	at := metav1.NewTime(now.Add(time.Duration(grace) * time.Second).Truncate(time.Second))
	switch {
	case before == nil:
		if obj.GetGeneration() > 0 {
			obj.SetGeneration(obj.GetGeneration() + 1)
		}
		obj.SetDeletionTimestamp(&at)
	case obj.GetDeletionGracePeriodSeconds() != nil && *obj.GetDeletionGracePeriodSeconds() > grace:
		// The grace period was shortened; it counts from the first request.
		at = metav1.NewTime(before.Add(time.Duration(grace-*obj.GetDeletionGracePeriodSeconds()) * time.Second))
		obj.SetDeletionTimestamp(&at)
	case before.After(now):
		obj.SetDeletionTimestamp(&at)
	}
	if k.Terminate == nil {
		obj.SetDeletionGracePeriodSeconds(&grace)
	} else if before == nil {
		k.Terminate(obj)
	}
}

// gcFinalizers returns the object's finalizers with those that the propagation policy requires,
// and without those of the other policies.
func gcFinalizers(k *resource.Kind, old resource.Object, o DeleteOptions) []string {
	had := old.GetFinalizers()
	policy := k.DefaultPropagation
	switch {
	case slices.Contains(had, metav1.FinalizerOrphanDependents):
		policy = metav1.DeletePropagationOrphan
	case slices.Contains(had, metav1.FinalizerDeleteDependents):
		policy = metav1.DeletePropagationForeground
	}
	if o.PropagationPolicy != nil {
		policy = *o.PropagationPolicy
	}
	if o.OrphanDependents != nil {
		policy = metav1.DeletePropagationBackground
		if *o.OrphanDependents {
			policy = metav1.DeletePropagationOrphan
		}
	}
	var wanted string
	switch policy {
	case metav1.DeletePropagationOrphan:
		wanted = metav1.FinalizerOrphanDependents
	case metav1.DeletePropagationForeground:
		wanted = metav1.FinalizerDeleteDependents
	}
	out := make([]string, 0, len(had)+1)
	for _, f := range had {
		if f == wanted || f != metav1.FinalizerOrphanDependents && f != metav1.FinalizerDeleteDependents {
			out = append(out, f)
		}
	}
	if wanted != "" && !slices.Contains(out, wanted) {
		out = append(out, wanted)
	}
	return out
}

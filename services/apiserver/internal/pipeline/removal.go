package pipeline

import (
	"context"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// newRemoval returns the change of the delete that a posted object asks for.
func (p *Pipeline) newRemoval(ctx context.Context, k *resource.Kind, sub *resource.Subresource, t Target, b Body, o WriteOptions) (*change, error) {
	obj, warnings, err := p.decodePosted(sub.GVK, sub.New, b, o)
	if err != nil {
		return nil, err
	}
	r := sub.Removal
	if err := r.Check(obj, t.Name); err != nil {
		return nil, err
	}
	if err := checkPlace(k, t, obj); err != nil {
		return nil, err
	}
	d := DeleteOptions{WriteOptions: o}
	if asked := r.Options(obj); asked != nil {
		d.Preconditions = asked.Preconditions
		d.GracePeriodSeconds = asked.GracePeriodSeconds
		d.PropagationPolicy = asked.PropagationPolicy
		d.OrphanDependents = asked.OrphanDependents //nolint:staticcheck // clients still send it
		d.DryRun = d.DryRun || len(asked.DryRun) > 0
	}
	t.Subresource = ""
	c, err := p.deletion(ctx, k, t, d)
	if err != nil {
		return nil, err
	}
	recorded := false // whether the previous write of this change recorded the reason in the parent
	c.plan = func(cur *watchcache.Item) (*step, error) {
		c.warn = slices.Clone(warnings)
		if recorded && d.Preconditions != nil && d.Preconditions.ResourceVersion != nil {
			// The requested state existed, and the previous write of this change has replaced it.
			now := *d.Preconditions
			now.ResourceVersion = new(cur.Object().GetResourceVersion())
			d.Preconditions = &now
		}
		recorded = false
		s, err := p.planRemoval(c, r, cur, d)
		if err == nil && !c.budgeted {
			// After all other checks, so that a refused removal takes nothing from the budget.
			c.budgeted, err = p.charge(c, r.Budget, cur.Object())
		}
		if err != nil {
			return nil, err
		}
		if s.more {
			s.finish = append(s.finish, func(ok bool) { recorded = ok })
			return s, nil
		}
		s.answer = postedAnswer
		return s, nil
	}
	return c, nil
}

// planRemoval plans a delete that first records its reason in the object. If the object is removed
// at once, that takes a write of its own, so that watchers see the reason in the last state.
func (p *Pipeline) planRemoval(c *change, r *resource.Removal, cur *watchcache.Item, d DeleteOptions) (*step, error) {
	s, err := p.planDelete(c, cur, d)
	if err != nil || d.DryRun {
		return s, err
	}
	if s.gone {
		if r.Recorded(cur.Object()) {
			return s, nil
		}
		s.gone, s.more, s.keepTrace = false, true, true
		s.obj = cur.Object().DeepCopyObject().(resource.Object)
	}
	r.Record(s.obj, p.second())
	return s, nil
}

// postedAnswer makes the Outcome of a change the Status that Kubernetes returns for a post to a
// subresource.
func postedAnswer(out *Outcome) {
	out.Item = nil
	out.Status = &metav1.Status{Status: metav1.StatusSuccess, Code: 201}
	out.Created = true
}

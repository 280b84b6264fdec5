package pipeline

import (
	"context"

	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

var evictionGVK = policyv1.SchemeGroupVersion.WithKind("Eviction")

// newEviction makes the delete that an eviction asks for.
func (p *Pipeline) newEviction(ctx context.Context, k *resource.Kind, t Target, b Body, o WriteOptions) (*change, error) {
	obj, warnings, err := p.decodePosted(evictionGVK, func() resource.Object { return &policyv1.Eviction{} }, b, o)
	if err != nil {
		return nil, err
	}
	e := obj.(*policyv1.Eviction)
	if e.Name != t.Name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	d := DeleteOptions{WriteOptions: o}
	if e.DeleteOptions != nil {
		d.Preconditions = e.DeleteOptions.Preconditions
		d.GracePeriodSeconds = e.DeleteOptions.GracePeriodSeconds
		d.PropagationPolicy = e.DeleteOptions.PropagationPolicy
		d.OrphanDependents = e.DeleteOptions.OrphanDependents //nolint:staticcheck // clients still send it
		d.DryRun = d.DryRun || len(e.DeleteOptions.DryRun) > 0
	}
	t.Subresource = ""
	c, err := p.newDelete(ctx, t, d)
	if err != nil {
		return nil, err
	}
	c.warn = warnings
	plan := c.plan
	c.plan = func(cur *watchcache.Item) (*step, error) {
		s, err := plan(cur)
		if err != nil {
			return nil, err
		}
		s.answer = func(out *Outcome) {
			out.Item = nil
			out.Status = &metav1.Status{Status: metav1.StatusSuccess, Code: 201}
			out.Created = true
		}
		return s, nil
	}
	return c, nil
}

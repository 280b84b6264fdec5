package pipeline

import (
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// track records in obj what the writer changed.
func (p *Pipeline) track(c *change, old, obj resource.Object) error {
	if p.cfg.Fields == nil {
		return nil
	}
	return p.cfg.Fields.Track(FieldsRequest{
		Kind: c.kind, Subresource: c.target.Subresource, Old: old, Object: obj,
		Manager: c.opts.manager(), Now: p.cfg.Now(),
	})
}

// newApply completes the change of a server-side apply.
func (p *Pipeline) newApply(c *change, sub *resource.Subresource, b Body) error {
	if p.cfg.Fields == nil || sub != nil && sub.Scale != nil {
		return errMethod(c.target, "apply")
	}
	text, err := codec.ToJSON(b.Data)
	if err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	if err := codec.CheckDepth(text); err != nil {
		return err
	}
	c.plan = func(cur *watchcache.Item) (*step, error) {
		c.warn = nil
		r := FieldsRequest{Kind: c.kind, Subresource: c.target.Subresource, Manager: c.opts.FieldManager, Now: p.cfg.Now()}
		if cur != nil {
			r.Old = cur.Object
		}
		obj, err := p.cfg.Fields.Apply(r, text, c.opts.Force)
		if err != nil {
			return nil, err
		}
		if err := checkNames(c, obj); err != nil {
			return nil, err
		}
		if cur != nil {
			return p.planUpdate(c, cur, obj, false)
		}
		if c.target.Subresource != "" {
			return nil, apierrors.NewNotFound(c.gr(), c.target.Name)
		}
		if err := p.Authorize(c.ctx, "create", c.target); err != nil {
			return nil, err
		}
		return p.planCreate(c, obj, false)
	}
	return nil
}

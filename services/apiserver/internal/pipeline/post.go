package pipeline

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// post processes a post to a subresource. It returns either the change that it makes or, for an
// action, the outcome.
func (p *Pipeline) post(ctx context.Context, k *resource.Kind, sub *resource.Subresource, t Target, b Body, o WriteOptions) (*change, *Outcome, error) {
	if o.RequestID != "" && sub.Change == nil {
		return nil, nil, errRequestID(t.Resource.Resource + "/" + t.Subresource)
	}
	switch {
	case sub.Change != nil:
		c, err := p.newPostedChange(ctx, k, sub, t, b, o)
		return c, nil, err
	case sub.Removal != nil:
		c, err := p.newRemoval(ctx, k, sub, t, b, o)
		return c, nil, err
	}
	out, err := p.act(ctx, sub.Action, &resource.Kind{GVK: sub.GVK, New: sub.New}, t, b, o)
	return nil, out, err
}

// forward processes a post to a virtual kind that stands for a subresource of the object with the
// name of the posted one.
func (p *Pipeline) forward(ctx context.Context, to *resource.Forward, virtual *resource.Kind, t Target, b Body, o WriteOptions) (*change, *Outcome, error) {
	obj, _, err := p.decodePosted(virtual.GVK, virtual.New, b, o)
	if err != nil {
		return nil, nil, err
	}
	// The right to post to the virtual kind is the right to post to any object of the namespace.
	t.Resource, t.Name, t.Subresource = to.Resource, obj.GetName(), to.Subresource
	k, sub, err := p.kind(t)
	if err != nil {
		return nil, nil, err
	}
	if err := checkTarget("create", k, sub, t); err != nil {
		return nil, nil, err
	}
	return p.post(ctx, k, sub, t, b, o)
}

// newPostedChange returns the change of the parent that a posted object asks for: no defaults, no
// validation of the parent, no managed fields.
func (p *Pipeline) newPostedChange(ctx context.Context, k *resource.Kind, sub *resource.Subresource, t Target, b Body, o WriteOptions) (*change, error) {
	obj, warnings, err := p.decodePosted(sub.GVK, sub.New, b, o)
	if err != nil {
		return nil, err
	}
	c := &change{
		ctx: ctx, target: t, kind: k, rules: &k.Rules, opts: o, warn: warnings,
		user: request.UserFrom(ctx), key: k.Key(t.Namespace, t.Name), shares: true,
		request: requestKey(ctx, "create", t, o), answer: postedAnswer,
	}
	if err := sub.Change.Check(obj, t.Namespace, t.Name); err != nil {
		p.fail(c, err)
		return c, nil
	}
	c.plan = func(cur *watchcache.Item) (*step, error) { return p.planPosted(c, sub.Change, cur, obj) }
	return c, nil
}

func (p *Pipeline) planPosted(c *change, rules *resource.Change, cur *watchcache.Item, obj resource.Object) (*step, error) {
	if cur == nil {
		return nil, apierrors.NewNotFound(c.gr(), c.target.Name)
	}
	if err := rules.Allowed(cur.Object(), obj); err != nil {
		return nil, err
	}
	a := c.attributes(admission.Create, obj, nil)
	if err := p.cfg.Admission.Admit(c.ctx, a); err != nil {
		return nil, c.admissionError(obj, err)
	}
	if err := p.cfg.Admission.Validate(c.ctx, a); err != nil {
		return nil, c.admissionError(obj, err)
	}
	return &step{
		obj: rules.Apply(cur.Object(), obj, p.second()), expect: cur.Revision, keepTrace: true, answer: postedAnswer,
	}, nil
}

// second returns the time in the precision of metav1.Time.
func (p *Pipeline) second() time.Time { return p.cfg.Now().Truncate(time.Second) }

// act decodes a body and passes it to an action.
func (p *Pipeline) act(ctx context.Context, name resource.Action, k *resource.Kind, t Target, b Body, o WriteOptions) (*Outcome, error) {
	action := p.cfg.Actions[name]
	if action == nil {
		return nil, errMethod(t, "create")
	}
	obj, warnings, err := p.decodePosted(k.GVK, k.New, b, o)
	if err != nil {
		return nil, err
	}
	parent := p.cfg.Table.ByResource(t.Resource)
	if err := checkPlace(parent, t, obj); err != nil {
		return warned(warnings), err
	}
	if t.Subresource != "" {
		a := &admission.Attributes{
			Operation: admission.Create, User: request.UserFrom(ctx), Kind: parent, Subresource: t.Subresource,
			Namespace: t.Namespace, Name: t.Name, Object: obj, DryRun: o.DryRun,
			Warn: func(message string) { warnings = append(warnings, message) },
		}
		if err := p.cfg.Admission.Validate(ctx, a); err != nil {
			return warned(warnings), refusal(t.Resource.GroupResource(), t.Name, err)
		}
	}
	if k.Rules.Default != nil {
		k.Rules.Default(obj)
	}
	if k.Rules.Validate != nil {
		if errs := k.Rules.Validate(obj); len(errs) > 0 {
			gk := k.GVK.GroupKind()
			if t.Subresource == "" {
				gk.Kind = "" // as in Kubernetes' errors about reviews
			}
			return warned(warnings), apierrors.NewInvalid(gk, obj.GetName(), errs)
		}
	}
	out, err := action(ctx, t, obj, o)
	if err != nil {
		return warned(warnings), err
	}
	out.Warnings = append(warnings, out.Warnings...)
	return out, nil
}

func (p *Pipeline) decodePosted(gvk schema.GroupVersionKind, fresh func() resource.Object, b Body, o WriteOptions) (resource.Object, []string, error) {
	return codec.Decode(codec.Input{
		Data: b.Data, Type: b.Type, Declared: b.GVK, Want: gvk, New: fresh,
		Known:      func(g schema.GroupVersionKind) bool { return p.cfg.Table.Posted(g) || p.knows(g) },
		Validation: codec.Validation(o.FieldValidation),
	})
}

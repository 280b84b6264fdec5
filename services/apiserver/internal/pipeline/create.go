package pipeline

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// Create stores a new object or posts to a subresource.
func (p *Pipeline) Create(ctx context.Context, t Target, b Body, o WriteOptions) (*Outcome, error) {
	growStack()
	c, out, err := p.newCreate(ctx, t, b, o)
	if c == nil {
		return out, p.statusOf(ctx, t.Resource.GroupResource(), t.Name, err)
	}
	p.run(ctx, c)
	return c.out, c.err
}

// newCreate returns the change of a create. For an action, which makes no change, it returns the
// outcome instead.
func (p *Pipeline) newCreate(ctx context.Context, t Target, b Body, o WriteOptions) (*change, *Outcome, error) {
	k, sub, err := p.enter(ctx, "create", t, "", "")
	if err != nil {
		return nil, nil, err
	}
	if err := checkWriteOptions("CreateOptions", o); err != nil {
		return nil, nil, err
	}
	if err := checkRequestID(o); err != nil {
		return nil, nil, err
	}
	switch {
	case k.Forward != nil:
		return p.forward(ctx, k.Forward, k, t, b, o)
	case k.Virtual():
		out, err := p.act(ctx, k.Action, k, t, b, o)
		return nil, out, err
	case sub != nil:
		return p.post(ctx, k, sub, t, b, o)
	}
	c := &change{
		ctx: ctx, target: t, kind: k, rules: &k.Rules, opts: o,
		user: request.UserFrom(ctx), creates: true, shares: canonical(b.Type),
		request: requestKey(ctx, "create", t, o),
	}
	c.plan = func(*watchcache.Item) (*step, error) {
		c.warn = nil
		obj, warnings, err := p.decode(k, k.New, b, o)
		if err != nil {
			return nil, err
		}
		c.warn = warnings
		return p.planCreate(c, obj, true)
	}
	return c, nil, nil
}

// canonical reports whether an encoding cannot represent an empty list, so that decoding a body
// gives the same object as decoding it from the store.
func canonical(m MediaType) bool { return m == Message || m == Protobuf }

// decode decodes a body as an object of kind k.
func (p *Pipeline) decode(k *resource.Kind, fresh func() resource.Object, b Body, o WriteOptions) (resource.Object, []string, error) {
	return codec.Decode(codec.Input{
		Data:       b.Data,
		Type:       b.Type,
		Declared:   b.GVK,
		Want:       k.GVK,
		New:        fresh,
		Known:      p.knows,
		Validation: codec.Validation(o.FieldValidation),
	})
}

// planCreate completes and checks a new object. track is false if managed fields are already set,
// as they are by an apply.
func (p *Pipeline) planCreate(c *change, obj resource.Object, track bool) (*step, error) {
	k := c.kind
	if err := checkPlace(k, c.target, obj); err != nil {
		return nil, err
	}
	generated := obj.GetName() == "" && obj.GetGenerateName() != ""
	if item, err := p.createdBefore(c, obj, generated); err != nil {
		return nil, err
	} else if item != nil {
		out, err := p.answered(c, item)
		return &step{answered: out}, err
	}
	switch {
	case generated && c.request != "":
		obj.SetName(requestedName(obj.GetGenerateName(), c.request, c.names))
	case generated:
		obj.SetName(generateName(obj.GetGenerateName()))
	}
	if c.rules.Default != nil {
		c.rules.Default(obj)
	}
	dedupOwners(obj, func(w string) { c.warn = append(c.warn, w) })
	if track {
		p.track(c, nil, obj)
	}
	a := c.attributes(admission.Create, obj, nil)
	if a.Name == "" {
		a.Name = obj.GetName()
	}
	if err := p.cfg.Admission.Admit(c.ctx, a); err != nil {
		return nil, c.admissionError(obj, err)
	}
	if rev, err := strconv.ParseUint(obj.GetResourceVersion(), 10, 64); err == nil && rev != 0 {
		return nil, errVersionOnCreate // an invalid version is dropped, as in Kubernetes
	}
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetSelfLink("")
	obj.SetResourceVersion("")
	obj.SetUID(types.UID(uuid.NewString()))
	obj.SetCreationTimestamp(metav1.NewTime(p.cfg.Now().Truncate(1e9)))
	if k.NoGeneration {
		obj.SetGeneration(0)
	} else {
		obj.SetGeneration(1)
	}
	if c.rules.Notices != nil {
		c.warn = append(c.warn, c.rules.Notices(obj)...)
	}
	if c.rules.PrepareCreate != nil {
		c.rules.PrepareCreate(obj)
	}
	s := &step{obj: obj, expect: store.MustNotExist, created: true}
	if err := p.completeCreate(c, s, a, generated); err != nil {
		s.settled(false)
		return nil, err
	}
	return s, nil
}

// completeCreate claims what the object needs, validates the object and sets its key.
func (p *Pipeline) completeCreate(c *change, s *step, a *admission.Attributes, generated bool) error {
	obj := s.obj
	if claimer := c.kind.Claimer; claimer != nil {
		finish, err := claimer.Claim(c.ctx, obj, nil, c.opts.DryRun)
		if finish != nil {
			s.finish = append(s.finish, finish)
		}
		if err != nil {
			return err
		}
	}
	if err := validateNew(c.kind, c.rules, obj); err != nil {
		return err
	}
	if err := p.cfg.Admission.Validate(c.ctx, a); err != nil {
		return c.admissionError(obj, err)
	}
	if err := p.chargeQuotas(c, obj, nil); err != nil {
		return err
	}
	if c.rules.Warnings != nil {
		c.warn = append(c.warn, c.rules.Warnings(obj, nil)...)
	}
	c.key = c.kind.Key(obj.GetNamespace(), obj.GetName())
	if generated {
		c.names++
	}
	if c.opts.DryRun {
		entry, _, err := p.place(c.kind).Store.Get(c.ctx, c.key)
		switch {
		case err == nil:
			return p.errExists(c, &entry)
		case !errors.Is(err, store.ErrNotFound):
			return err
		}
	}
	return nil
}

// errVersionOnCreate is the error of Kubernetes' storage, with the Status that it results in.
var errVersionOnCreate = &apierrors.StatusError{ErrStatus: metav1.Status{
	Status:  metav1.StatusFailure,
	Code:    500,
	Message: "resourceVersion should not be set on objects to be created",
}}

// exists answers a create that was performed before, tries another generated name, or fails the
// change.
func (p *Pipeline) exists(c *change, v store.Verdict) {
	if item, err := p.existing(c, v.Current); err != nil {
		p.fail(c, err)
		return
	} else if item != nil {
		c.step, c.warn = nil, nil
		out, err := p.answered(c, item)
		c.end(out, err)
		return
	}
	if c.names > 0 && c.names < maxNames {
		c.step, c.warn = nil, nil
		return
	}
	p.fail(c, p.errExists(c, v.Current))
}

func (p *Pipeline) errExists(c *change, found *store.Entry) error {
	name := strings.TrimPrefix(c.key, c.kind.Prefix(c.target.Namespace))
	if c.names > 0 {
		return apierrors.NewGenerateNameConflict(c.gr(), name, 1)
	}
	err := apierrors.NewAlreadyExists(c.gr(), name)
	if found != nil {
		if item, derr := watchcache.Decode(p.stored(c.kind), *found); derr == nil && item.Object().GetDeletionTimestamp() != nil {
			err.ErrStatus.Message = fmt.Sprintf("object is being deleted: %s", err.ErrStatus.Message)
		}
	}
	return err
}

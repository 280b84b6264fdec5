package pipeline

import (
	"errors"
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/fieldmanager"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

type scaled = autoscalingv1.Scale

var scaleGVK = autoscalingv1.SchemeGroupVersion.WithKind("Scale")

// scaleOf returns the scale of an object.
func scaleOf(k *resource.Kind, s *resource.Scale, item *watchcache.Item) *scaled {
	spec, status, selector := s.Get(item.Object())
	obj := item.Object()
	return &scaled{
		ObjectMeta: metav1.ObjectMeta{
			Name:              obj.GetName(),
			Namespace:         obj.GetNamespace(),
			UID:               obj.GetUID(),
			ResourceVersion:   obj.GetResourceVersion(),
			CreationTimestamp: obj.GetCreationTimestamp(),
		},
		Spec:   autoscalingv1.ScaleSpec{Replicas: spec},
		Status: autoscalingv1.ScaleStatus{Replicas: status, Selector: selector},
	}
}

// planScale changes spec.replicas to those of the scale that edit returns.
func (p *Pipeline) planScale(c *change, s *resource.Scale, cur *watchcache.Item, edit func(*scaled) (*scaled, error)) (*step, error) {
	if cur == nil {
		return nil, apierrors.NewNotFound(c.gr(), c.target.Name)
	}
	c.warn = nil
	want, err := edit(scaleOf(c.kind, s, cur))
	if err != nil {
		return nil, err
	}
	return p.planScaled(c, s, cur, want, nil)
}

// planScaleApply changes spec.replicas by a server-side apply of a Scale.
func (p *Pipeline) planScaleApply(c *change, s *resource.Scale, cur *watchcache.Item, configuration map[string]any, check func() error) (*step, error) {
	if cur == nil {
		return nil, apierrors.NewNotFound(c.gr(), c.target.Name)
	}
	want, fields, err := p.cfg.Fields.ApplyScale(
		fieldmanager.Write{Kind: c.kind, Subresource: c.target.Subresource, Old: cur.Object(), Manager: c.opts.FieldManager, Now: p.cfg.Now()},
		scaleOf(c.kind, s, cur), runtime.DeepCopyJSON(configuration), c.opts.Force)
	if err == nil {
		err = check()
	}
	if err != nil {
		return nil, err
	}
	return p.planScaled(c, s, cur, want, &fields)
}

// planScaled changes the object's scale to the wanted one. fields are the object's managed fields
// if they are already known, and nil otherwise.
func (p *Pipeline) planScaled(c *change, s *resource.Scale, cur *watchcache.Item, want *scaled, fields *[]metav1.ManagedFieldsEntry) (*step, error) {
	if want.Name != "" && want.Name != c.target.Name {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", want.Name, c.target.Name))
	}
	if want.Namespace != "" && want.Namespace != c.target.Namespace {
		return nil, apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	if want.Spec.Replicas < 0 {
		return nil, apierrors.NewInvalid(scaleGVK.GroupKind(), c.target.Name, field.ErrorList{
			field.Invalid(field.NewPath("spec", "replicas"), want.Spec.Replicas, "must be greater than or equal to 0"),
		})
	}
	if want.UID != "" && want.UID != cur.Object().GetUID() {
		return nil, apierrors.NewConflict(c.gr(), c.target.Name, fmt.Errorf("Precondition failed: UID in precondition: %v, UID in object meta: %v", want.UID, cur.Object().GetUID()))
	}
	obj, ok := cur.Object().DeepCopyObject().(resource.Object)
	if !ok {
		return nil, errors.New("object cannot be copied")
	}
	if want.ResourceVersion != "" {
		obj.SetResourceVersion(want.ResourceVersion)
	}
	s.Set(obj, want.Spec.Replicas)
	if fields != nil {
		obj.SetManagedFields(*fields)
	}
	st, err := p.planUpdate(c, cur, obj, fields == nil)
	if err != nil {
		return nil, err
	}
	st.answer = func(out *Outcome) {
		out.Other = scaleOf(c.kind, s, out.Item)
		out.Item = nil
	}
	return st, nil
}

// decodeScale decodes a body as a Scale.
func (p *Pipeline) decodeScale(c *change, b Body) (*scaled, error) {
	obj, warnings, err := codec.Decode(codec.Input{
		Data: b.Data, Type: b.Type, Declared: b.GVK, Want: scaleGVK,
		New:        func() resource.Object { return &scaled{} },
		Known:      p.knows,
		Validation: codec.Validation(c.opts.FieldValidation),
	})
	if err != nil {
		return nil, err
	}
	c.warn = warnings
	return obj.(*scaled), nil
}

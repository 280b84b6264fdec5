package pipeline

import (
	"context"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/admission"
	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
)

// posted contains the constructors of the objects that are posted to subresources.
var posted = map[schema.GroupVersionKind]func() resource.Object{
	corev1.SchemeGroupVersion.WithKind("Binding"):                func() resource.Object { return &corev1.Binding{} },
	policyv1.SchemeGroupVersion.WithKind("Eviction"):             func() resource.Object { return &policyv1.Eviction{} },
	authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"): func() resource.Object { return &authenticationv1.TokenRequest{} },
}

// post processes a post to a subresource. Bindings and evictions are changes of the parent,
// everything else is an action.
func (p *Pipeline) post(ctx context.Context, k *resource.Kind, sub *resource.Subresource, t Target, b Body, o WriteOptions) (*change, *Outcome, error) {
	body := &resource.Kind{GVK: sub.GVK}
	switch sub.Post {
	case "binding":
		c, err := p.newBinding(ctx, k, t, b, o)
		return c, nil, err
	case "eviction":
		c, err := p.newEviction(ctx, k, t, b, o)
		return c, nil, err
	}
	out, err := p.act(ctx, p.cfg.Posts[sub.Post], posted[sub.GVK], body, t, b, o)
	return nil, out, err
}

// bindVirtual processes a post to the resource bindings, where the Binding's name is the pod's.
func (p *Pipeline) bindVirtual(ctx context.Context, t Target, b Body, o WriteOptions) (*change, error) {
	obj, _, err := p.decodePosted(bindingGVK, func() resource.Object { return &corev1.Binding{} }, b, o)
	if err != nil {
		return nil, err
	}
	// The right to create bindings is the right to bind any pod of the namespace.
	t.Resource = corev1.SchemeGroupVersion.WithResource("pods")
	t.Name, t.Subresource = obj.GetName(), "binding"
	k, sub, err := p.kind(t)
	if err != nil {
		return nil, err
	}
	if err := checkTarget("create", k, sub, t); err != nil {
		return nil, err
	}
	return p.newBinding(ctx, k, t, b, o)
}

// act decodes a body and passes it to an action.
func (p *Pipeline) act(ctx context.Context, action Action, fresh func() resource.Object, k *resource.Kind, t Target, b Body, o WriteOptions) (*Outcome, error) {
	if action == nil || fresh == nil {
		return nil, errMethod(t, "create")
	}
	obj, warnings, err := p.decodePosted(k.GVK, fresh, b, o)
	if err != nil {
		return nil, err
	}
	parent := p.cfg.Table.ByResource(t.Resource)
	if err := checkPlace(parent, t, obj); err != nil {
		return warned(warnings), err
	}
	if k.Virtual == "" {
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
			if k.Virtual != "" {
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
		Known:      func(g schema.GroupVersionKind) bool { return posted[g] != nil || p.knows(g) },
		Validation: codec.Validation(o.FieldValidation),
	})
}

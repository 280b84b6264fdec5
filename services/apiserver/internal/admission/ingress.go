package admission

import (
	"context"

	networkingv1 "k8s.io/api/networking/v1"

	"keelson.dev/services/apiserver/internal/kind/networking"
	"keelson.dev/services/apiserver/internal/resource"
)

// DefaultIngressClass sets the default class on new Ingresses that name none, neither in their spec
// nor in the annotation that preceded it.
type DefaultIngressClass struct{ State State }

// Admit implements Mutator.
func (p *DefaultIngressClass) Admit(_ context.Context, a *Attributes) error {
	ingress, ok := a.Object.(*networkingv1.Ingress)
	if !ok || a.Operation != Create || !a.Is("networking.k8s.io", "ingresses") || ingress.Spec.IngressClassName != nil {
		return nil
	}
	if _, annotated := ingress.Annotations[networking.ClassAnnotation]; annotated {
		return nil
	}
	class := networking.PickDefaultClass(func(yield func(resource.Object) bool) {
		p.State.Each("networking.k8s.io", "ingressclasses", "", yield)
	})
	if class != nil {
		name := class.GetName()
		ingress.Spec.IngressClassName = &name
	}
	return nil
}

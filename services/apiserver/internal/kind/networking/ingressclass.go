package networking

import (
	"iter"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

const maxControllerName = 250

// IngressClass returns the row of ingressclasses.
func IngressClass() *resource.Kind {
	k := row.Cluster[networkingv1.IngressClass, networkingv1.IngressClassList](networkingv1.SchemeGroupVersion, "ingressclasses", "ingressclasses")
	spec := networkingv1.IngressClassSpec{}
	k.Columns = []metav1.TableColumnDefinition{
		column.Text("Controller", column.Doc(spec, "controller")),
		column.Text("Parameters", column.Doc(spec, "parameters")),
		column.AgeColumn(),
	}
	k.Cells = classCells
	k.Marked = func(o resource.Object) bool { return isDefaultClass(o) }
	k.Rules = resource.Typed[*networkingv1.IngressClass]{
		Default: func(c *networkingv1.IngressClass) {
			if c.Spec.Parameters != nil && c.Spec.Parameters.Scope == nil {
				scope := networkingv1.IngressClassParametersReferenceScopeCluster
				c.Spec.Parameters.Scope = &scope
			}
		},
		Validate: validateClass,
		ValidateUpdate: func(c, old *networkingv1.IngressClass) field.ErrorList {
			var e check.Errors
			if c.Spec.Controller != old.Spec.Controller {
				e.Invalid(field.NewPath("spec", "controller"), c.Spec.Controller, check.Immutable)
			}
			e.Append(validateClass(c))
			return e.List
		},
	}.Rules()
	return k
}

func isDefaultClass(o resource.Object) bool {
	return o.GetAnnotations()[networkingv1.AnnotationIsDefaultIngressClass] == "true"
}

// PickDefaultClass returns the class for Ingresses that name none: the newest of those marked as
// default, and of several with the same age the first by name. It returns nil if none is marked.
func PickDefaultClass(classes iter.Seq[resource.Object]) resource.Object {
	var found resource.Object
	for c := range classes {
		if !isDefaultClass(c) {
			continue
		}
		if found == nil {
			found = c
			continue
		}
		at, best := c.GetCreationTimestamp(), found.GetCreationTimestamp()
		if best.Before(&at) || best.Equal(&at) && c.GetName() < found.GetName() {
			found = c
		}
	}
	return found
}

func validateClass(c *networkingv1.IngressClass) field.ErrorList {
	var e ingressCheck
	p := field.NewPath("spec", "controller")
	if len(c.Spec.Controller) > maxControllerName {
		e.List = append(e.List, field.TooLong(p, "", maxControllerName))
	}
	e.Append(validationutil.IsDomainPrefixedPath(p, c.Spec.Controller))
	if c.Spec.Parameters != nil {
		e.parameters(field.NewPath("spec", "parameters"), c.Spec.Parameters)
	}
	return e.List
}

func (e *ingressCheck) parameters(p *field.Path, r *networkingv1.IngressClassParametersReference) {
	if r.APIGroup != nil {
		e.Messages(p, "apiGroup", *r.APIGroup, check.Subdomain(*r.APIGroup))
	}
	e.segment(p, "kind", r.Kind)
	e.segment(p, "name", r.Name)
	const cluster, namespace = networkingv1.IngressClassParametersReferenceScopeCluster, networkingv1.IngressClassParametersReferenceScopeNamespace
	switch {
	case r.Scope == nil:
		e.Required(p.Child("scope"), "")
	case *r.Scope == namespace && r.Namespace == nil:
		e.Required(p.Child("namespace"), "`parameters.scope` is set to 'Namespace'")
	case *r.Scope == namespace:
		e.Messages(p, "namespace", *r.Namespace, check.Label(*r.Namespace))
	case *r.Scope != cluster:
		e.List = append(e.List, field.NotSupported(p.Child("scope"), *r.Scope, []string{cluster, namespace}))
	case r.Namespace != nil:
		e.Forbidden(p.Child("namespace"), "`parameters.scope` is set to 'Cluster'")
	}
}

func classCells(o resource.Object) []any {
	c := o.(*networkingv1.IngressClass)
	parameters := "<none>"
	if r := c.Spec.Parameters; r != nil {
		parameters = r.Kind
		if r.APIGroup != nil {
			parameters += "." + *r.APIGroup
		}
		parameters += "/" + r.Name
	}
	return []any{c.Spec.Controller, parameters, column.Age(c.CreationTimestamp)}
}

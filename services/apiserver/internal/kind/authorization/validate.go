package authorization

import (
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

var specPath = field.NewPath("spec")

func validateSubject(r *authorizationv1.SubjectAccessReview) field.ErrorList {
	var e check.Errors
	validateSpec(&e, &r.Spec)
	noMetadata(&e, &r.ObjectMeta)
	return e.List
}

func validateSelf(r *authorizationv1.SelfSubjectAccessReview) field.ErrorList {
	var e check.Errors
	validateAttributes(&e, r.Spec.ResourceAttributes, r.Spec.NonResourceAttributes)
	noMetadata(&e, &r.ObjectMeta)
	return e.List
}

func validateLocal(r *authorizationv1.LocalSubjectAccessReview) field.ErrorList {
	var e check.Errors
	validateSpec(&e, &r.Spec)
	meta := r.ObjectMeta.DeepCopy()
	meta.Namespace = ""
	noMetadata(&e, meta)
	if a := r.Spec.ResourceAttributes; a != nil && a.Namespace != r.Namespace {
		e.Invalid(specPath.Child("resourceAttributes", "namespace"), a.Namespace, "must match metadata.namespace")
	}
	if a := r.Spec.NonResourceAttributes; a != nil {
		e.Invalid(specPath.Child("nonResourceAttributes"), a, "disallowed on this kind of request")
	}
	return e.List
}

// noMetadata refuses metadata on an object that is never stored.
func noMetadata(e *check.Errors, m *metav1.ObjectMeta) {
	plain := m.DeepCopy()
	plain.ManagedFields = nil
	if !equality.Semantic.DeepEqual(*plain, metav1.ObjectMeta{}) {
		e.Invalid(field.NewPath("metadata"), m, "must be empty")
	}
}

func validateSpec(e *check.Errors, s *authorizationv1.SubjectAccessReviewSpec) {
	validateAttributes(e, s.ResourceAttributes, s.NonResourceAttributes)
	if s.User == "" && len(s.Groups) == 0 {
		e.Invalid(specPath.Child("user"), s.User, "at least one of user or group must be specified")
	}
}

func validateAttributes(e *check.Errors, r *authorizationv1.ResourceAttributes, n *authorizationv1.NonResourceAttributes) {
	if (r == nil) == (n == nil) {
		var shown any
		if n != nil {
			shown = n
		}
		e.Invalid(specPath, shown, "exactly one of nonResourceAttributes or resourceAttributes must be specified")
	}
	if r == nil {
		return
	}
	p := specPath.Child("resourceAttributes")
	if s := r.FieldSelector; s != nil {
		validateSelector(e, s.RawSelector, len(s.Requirements), p.Child("fieldSelector"))
		for i, q := range s.Requirements {
			at := p.Child("fieldSelector", "requirements").Index(i)
			if q.Key == "" {
				e.Required(at.Child("key"), "must be specified")
			}
			e.Append(validation.ValidateFieldSelectorRequirement(q,
				validation.FieldSelectorValidationOptions{AllowUnknownOperatorInRequirement: true}, at))
		}
	}
	if s := r.LabelSelector; s != nil {
		validateSelector(e, s.RawSelector, len(s.Requirements), p.Child("labelSelector"))
		for i, q := range s.Requirements {
			e.Append(validation.ValidateLabelSelectorRequirement(q,
				validation.LabelSelectorValidationOptions{AllowUnknownOperatorInRequirement: true}, p.Child("labelSelector", "requirements").Index(i)))
		}
	}
}

func validateSelector(e *check.Errors, raw string, requirements int, p *field.Path) {
	switch {
	case raw != "" && requirements > 0:
		e.Invalid(p.Child("rawSelector"), raw, "may not specified at the same time as requirements")
	case raw == "" && requirements == 0:
		e.Required(p.Child("requirements"), "when "+p.String()+" is specified, requirements or rawSelector is required")
	}
}

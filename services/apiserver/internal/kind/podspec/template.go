package podspec

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

// DefaultTemplate sets the defaults of a template's spec.
func DefaultTemplate(t *corev1.PodTemplateSpec) { Default(&t.Spec) }

// ValidateTemplate checks a pod template whose defaults are set.
func ValidateTemplate(t *corev1.PodTemplateSpec, p *field.Path) field.ErrorList {
	var e check.Errors
	e.Labels(p, "labels", t.Labels)
	if len(t.Annotations) > 0 {
		e.Append(validation.ValidateAnnotations(t.Annotations, p.Child("annotations")))
	}
	validateAnnotations(&e, t.Annotations, &t.Spec, p, "annotations")
	v := &validator{spec: &t.Spec}
	e.Append(v.validate(p.Child("spec")))
	annotationsMatch(&e, t.Annotations, &t.Spec, p)
	if len(t.Spec.EphemeralContainers) > 0 {
		e.Forbidden(p.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template")
	}
	return e.List
}

// ValidateLongRunning checks a template whose pods are replaced whenever they end. s is the
// selector of the pods.
func ValidateLongRunning(t *corev1.PodTemplateSpec, s *metav1.LabelSelector, p *field.Path, kind string) field.ErrorList {
	var e check.Errors
	if selector, err := metav1.LabelSelectorAsSelector(s); err == nil && !selector.Empty() &&
		!selector.Matches(labels.Set(t.Labels)) {
		e.Invalid(p.Child("metadata", "labels"), t.Labels, "`selector` does not match template `labels`")
	}
	e.Append(ValidateTemplate(t, p))
	if t.Spec.RestartPolicy != corev1.RestartPolicyAlways && t.Spec.RestartPolicy != "" {
		check.Supported(&e, p.Child("spec"), "restartPolicy", t.Spec.RestartPolicy, corev1.RestartPolicyAlways)
	}
	if t.Spec.ActiveDeadlineSeconds != nil {
		e.Forbidden(p.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in "+kind+" is not Supported")
	}
	return e.List
}

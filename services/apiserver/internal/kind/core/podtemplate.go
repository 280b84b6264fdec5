package core

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// PodTemplate returns the row of podtemplates.
func PodTemplate() *resource.Kind {
	k := row.Namespaced[corev1.PodTemplate, corev1.PodTemplateList](corev1.SchemeGroupVersion, "podtemplates", "podtemplates")
	k.ReturnsDeleted = true
	k.Columns, k.Cells = podTemplateColumns(), podTemplateCells
	p := field.NewPath("template")
	validate := func(t *corev1.PodTemplate) field.ErrorList { return podspec.ValidateTemplate(&t.Template, p) }
	k.Rules = resource.Typed[*corev1.PodTemplate]{
		Default:       func(t *corev1.PodTemplate) { podspec.DefaultTemplate(&t.Template) },
		PrepareCreate: func(t *corev1.PodTemplate) { podspec.Drop(&t.Template.Spec) },
		PrepareUpdate: func(t, _ *corev1.PodTemplate) { podspec.Drop(&t.Template.Spec) },
		Warnings: func(t, old *corev1.PodTemplate) []string {
			if old == nil {
				return templateWarnings(&t.Template, nil, p)
			}
			return templateWarnings(&t.Template, &old.Template, p)
		},
		Validate:       validate,
		ValidateUpdate: func(t, _ *corev1.PodTemplate) field.ErrorList { return validate(t) },
	}.Rules()
	return k
}

func podTemplateColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		column.Text("Containers", "Names of each container in the template."),
		column.Text("Images", "Images referenced by each container in the template."),
		column.Text("Pod Labels", "The labels for the pod template."),
	}
}

func podTemplateCells(o resource.Object) []any {
	t := o.(*corev1.PodTemplate)
	names, images := column.Containers(t.Template.Spec.Containers)
	return []any{names, images, column.Pairs(t.Template.Labels)}
}

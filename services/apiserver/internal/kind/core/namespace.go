package core

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Namespace returns the row of namespaces. A deleted namespace gets the phase Terminating and
// remains until its content is gone and the controller has removed `kubernetes` from
// spec.finalizers through the finalize subresource.
func Namespace() *resource.Kind {
	k := row.Cluster[corev1.Namespace, corev1.NamespaceList](corev1.SchemeGroupVersion, "namespaces", "namespaces")
	k.ReturnsDeleted = true
	k.ShortNames = []string{"ns"}
	k.NoGeneration = true
	k.NoDeleteCollection = true
	k.Columns = []metav1.TableColumnDefinition{column.Text("Status", "The status of the namespace"), column.AgeColumn()}
	k.Cells = func(o resource.Object) []any {
		n := o.(*corev1.Namespace)
		return []any{string(n.Status.Phase), column.Age(n.CreationTimestamp)}
	}
	k.Fields = map[string]func(resource.Object) string{
		"status.phase": func(o resource.Object) string { return string(o.(*corev1.Namespace).Status.Phase) },
	}
	k.Rules = resource.Typed[*corev1.Namespace]{
		Default: defaultNamespace,
		PrepareCreate: func(n *corev1.Namespace) {
			n.Status = corev1.NamespaceStatus{Phase: corev1.NamespaceActive}
			if !slices.Contains(n.Spec.Finalizers, corev1.FinalizerKubernetes) {
				n.Spec.Finalizers = append(n.Spec.Finalizers, corev1.FinalizerKubernetes)
			}
		},
		PrepareUpdate: func(n, old *corev1.Namespace) {
			n.Spec.Finalizers = old.Spec.Finalizers
			n.Status = old.Status
		},
		ValidateName: validation.ValidateNamespaceName,
		Validate:     func(n *corev1.Namespace) field.ErrorList { return validateFinalizers(n, false) },
	}.Rules()
	finalize := row.View(resource.Typed[*corev1.Namespace]{
		Default:        defaultNamespace,
		PrepareUpdate:  func(n, old *corev1.Namespace) { n.Status = old.Status },
		ValidateUpdate: func(n, _ *corev1.Namespace) field.ErrorList { return validateFinalizers(n, true) },
	}.Rules(), "status")
	finalize.Verbs = []string{"update"}
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*corev1.Namespace]{
			Default:        defaultNamespace,
			PrepareUpdate:  func(n, old *corev1.Namespace) { n.Spec = old.Spec },
			ValidateUpdate: validateNamespaceStatus,
		}.Rules()),
		"finalize": finalize,
	}
	k.Terminate = func(o resource.Object) { o.(*corev1.Namespace).Status.Phase = corev1.NamespaceTerminating }
	k.Held = func(o resource.Object) bool { return len(o.(*corev1.Namespace).Spec.Finalizers) > 0 }
	return k
}

// defaultNamespace sets the label that selectors find a namespace by.
func defaultNamespace(n *corev1.Namespace) {
	if n.Name == "" {
		return // generateName: the label is set once the name is known
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	n.Labels[corev1.LabelMetadataName] = n.Name
}

// validateFinalizers checks spec.finalizers. In Kubernetes' errors, the path is the list on
// create and the element in the finalize subresource (indexed).
func validateFinalizers(n *corev1.Namespace, indexed bool) field.ErrorList {
	var e check.Errors
	for i, f := range n.Spec.Finalizers {
		if f == corev1.FinalizerKubernetes {
			continue
		}
		p := field.NewPath("spec", "finalizers")
		if indexed {
			p = p.Index(i)
		}
		e.Messages(p, "", string(f), check.LabelKey(string(f)))
		if !qualified(string(f)) {
			e.Invalid(p, string(f), "name is neither a standard finalizer name nor is it fully qualified")
		}
	}
	return e.List
}

func validateNamespaceStatus(n, _ *corev1.Namespace) field.ErrorList {
	var e check.Errors
	p := field.NewPath("status", "Phase")
	switch {
	case n.DeletionTimestamp == nil && n.Status.Phase != corev1.NamespaceActive:
		e.Invalid(p, n.Status.Phase, "may only be 'Active' if `deletionTimestamp` is empty")
	case n.DeletionTimestamp != nil && n.Status.Phase != corev1.NamespaceTerminating:
		e.Invalid(p, n.Status.Phase, "may only be 'Terminating' if `deletionTimestamp` is not empty")
	}
	return e.List
}

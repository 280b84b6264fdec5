package core

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Namespace is the row of namespaces. A namespace that is deleted goes to phase
// Terminating and stays until its content is gone and the controller has taken
// `kubernetes` from spec.finalizers through the finalize subresource.
func Namespace() *resource.Kind {
	k := row.Cluster[corev1.Namespace, corev1.NamespaceList](corev1.SchemeGroupVersion, "namespaces", "namespaces")
	k.ShortNames = []string{"ns"}
	k.NoGeneration = true
	k.NoDeleteCollection = true
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
	}.Rules()
	finalize := row.View(resource.Typed[*corev1.Namespace]{
		Default:       defaultNamespace,
		PrepareUpdate: func(n, old *corev1.Namespace) { n.Status = old.Status },
	}.Rules())
	finalize.Verbs = []string{"update"}
	k.Subresources = map[string]resource.Subresource{
		"status": row.View(resource.Typed[*corev1.Namespace]{
			Default:       defaultNamespace,
			PrepareUpdate: func(n, old *corev1.Namespace) { n.Spec.Finalizers = old.Spec.Finalizers },
		}.Rules()),
		"finalize": finalize,
	}
	k.Terminate = func(o resource.Object) { o.(*corev1.Namespace).Status.Phase = corev1.NamespaceTerminating }
	k.Held = func(o resource.Object) bool { return len(o.(*corev1.Namespace).Spec.Finalizers) > 0 }
	return k
}

// defaultNamespace keeps the label that selectors find a namespace by.
func defaultNamespace(n *corev1.Namespace) {
	if n.Name == "" {
		return // generateName: the label is set once the name is known
	}
	if n.Labels == nil {
		n.Labels = map[string]string{}
	}
	n.Labels[corev1.LabelMetadataName] = n.Name
}

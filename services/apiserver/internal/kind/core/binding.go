package core

import (
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Binding returns the row of bindings, the legacy form of pods/binding.
func Binding() *resource.Kind {
	return row.Virtual[corev1.Binding](corev1.SchemeGroupVersion, "bindings", resource.VirtualBinding, true)
}

package core

import (
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Binding is the row of bindings: the old door to pods/binding.
func Binding() *resource.Kind {
	return row.Virtual[corev1.Binding](corev1.SchemeGroupVersion, "bindings", resource.VirtualBinding, true)
}

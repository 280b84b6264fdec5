package core

import (
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Endpoints is the row of endpoints.
func Endpoints() *resource.Kind {
	k := row.Namespaced[corev1.Endpoints, corev1.EndpointsList](corev1.SchemeGroupVersion, "endpoints", "services/endpoints")
	k.ShortNames = []string{"ep"}
	k.NoGeneration = true
	return k
}

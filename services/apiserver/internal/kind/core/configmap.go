package core

import (
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// ConfigMap is the row of configmaps.
func ConfigMap() *resource.Kind {
	k := row.Namespaced[corev1.ConfigMap, corev1.ConfigMapList](corev1.SchemeGroupVersion, "configmaps", "configmaps")
	k.ShortNames = []string{"cm"}
	k.NoGeneration = true
	return k
}

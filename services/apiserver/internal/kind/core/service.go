package core

import (
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Service is the row of services. Addresses and node ports are allocated by the
// pipeline.
func Service() *resource.Kind {
	k := row.Namespaced[corev1.Service, corev1.ServiceList](corev1.SchemeGroupVersion, "services", "services/specs")
	k.ShortNames = []string{"svc"}
	k.Categories = []string{"all"}
	k.NoGeneration = true
	k.Fields = map[string]func(resource.Object) string{
		"spec.clusterIP": func(o resource.Object) string { return o.(*corev1.Service).Spec.ClusterIP },
		"spec.type":      func(o resource.Object) string { return string(o.(*corev1.Service).Spec.Type) },
	}
	k.Rules = resource.Typed[*corev1.Service]{
		PrepareCreate: func(s *corev1.Service) { s.Status = corev1.ServiceStatus{} },
		PrepareUpdate: func(s, old *corev1.Service) { s.Status = old.Status },
	}.Rules()
	k.Subresources = map[string]resource.Subresource{
		"status": row.View(resource.Typed[*corev1.Service]{
			PrepareUpdate: func(s, old *corev1.Service) { s.Spec = old.Spec },
		}.Rules()),
	}
	return k
}

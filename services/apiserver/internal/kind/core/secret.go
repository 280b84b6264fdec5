package core

import (
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Secret is the row of secrets.
func Secret() *resource.Kind {
	k := row.Namespaced[corev1.Secret, corev1.SecretList](corev1.SchemeGroupVersion, "secrets", "secrets")
	k.NoGeneration = true
	k.Fields = map[string]func(resource.Object) string{
		"type": func(o resource.Object) string { return string(o.(*corev1.Secret).Type) },
	}
	k.Rules = resource.Typed[*corev1.Secret]{Default: defaultSecret}.Rules()
	return k
}

// defaultSecret merges stringData, which is written and never read.
func defaultSecret(s *corev1.Secret) {
	if len(s.StringData) > 0 {
		if s.Data == nil {
			s.Data = make(map[string][]byte, len(s.StringData))
		}
		for key, value := range s.StringData {
			s.Data[key] = []byte(value)
		}
		s.StringData = nil
	}
	if s.Type == "" {
		s.Type = corev1.SecretTypeOpaque
	}
}

package core

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Secret returns the row of secrets.
func Secret() *resource.Kind {
	k := row.Namespaced[corev1.Secret, corev1.SecretList](corev1.SchemeGroupVersion, "secrets", "secrets")
	k.NoGeneration = true
	k.Columns = []metav1.TableColumnDefinition{
		column.Text("Type", column.Doc(corev1.Secret{}, "type")),
		column.Text("Data", column.Doc(corev1.Secret{}, "data")), column.AgeColumn(),
	}
	k.Cells = func(o resource.Object) []any {
		s := o.(*corev1.Secret)
		return []any{string(s.Type), int64(len(s.Data)), column.Age(s.CreationTimestamp)}
	}
	k.Fields = map[string]func(resource.Object) string{
		"type": func(o resource.Object) string { return string(o.(*corev1.Secret).Type) },
	}
	k.Rules = resource.Typed[*corev1.Secret]{
		Default: defaultSecret,
		PrepareUpdate: func(s, old *corev1.Secret) {
			if s.Type == "" {
				s.Type = old.Type
			}
		},
		Warnings:       func(s, _ *corev1.Secret) []string { return secretWarnings(s) },
		Validate:       validateSecret,
		ValidateUpdate: validateSecretUpdate,
	}.Rules()
	return k
}

// defaultSecret merges stringData, which is write-only, into data.
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

func validateSecret(s *corev1.Secret) field.ErrorList {
	var e check.Errors
	p := field.NewPath("data")
	size := 0
	for key, value := range s.Data {
		e.Messages(p.Key(key), "", key, check.ConfigKey(key))
		size += len(value)
	}
	if size > corev1.MaxSecretSize {
		e.List = append(e.List, field.TooLong(p, "", corev1.MaxSecretSize))
	}
	required := func(keys ...string) {
		for _, key := range keys {
			if _, ok := s.Data[key]; !ok {
				e.Required(p.Key(key), "")
			}
		}
	}
	switch s.Type {
	case corev1.SecretTypeServiceAccountToken:
		if s.Annotations[corev1.ServiceAccountNameKey] == "" {
			e.Required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), "")
		}
	case corev1.SecretTypeDockercfg:
		validateDockerConfig(&e, s, corev1.DockerConfigKey, p)
	case corev1.SecretTypeDockerConfigJson:
		validateDockerConfig(&e, s, corev1.DockerConfigJsonKey, p)
	case corev1.SecretTypeBasicAuth:
		_, user := s.Data[corev1.BasicAuthUsernameKey]
		_, password := s.Data[corev1.BasicAuthPasswordKey]
		if !user && !password {
			required(corev1.BasicAuthUsernameKey, corev1.BasicAuthPasswordKey)
		}
	case corev1.SecretTypeSSHAuth:
		if len(s.Data[corev1.SSHAuthPrivateKey]) == 0 {
			e.Required(p.Key(corev1.SSHAuthPrivateKey), "")
		}
	case corev1.SecretTypeTLS:
		required(corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	return e.List
}

// secretWarnings returns a warning if a TLS certificate and key are unusable.
func secretWarnings(s *corev1.Secret) []string {
	if s.Type != corev1.SecretTypeTLS {
		return nil
	}
	if _, err := tls.X509KeyPair(s.Data[corev1.TLSCertKey], s.Data[corev1.TLSPrivateKeyKey]); err != nil {
		return []string{err.Error()}
	}
	return nil
}

func validateDockerConfig(e *check.Errors, s *corev1.Secret, key string, p *field.Path) {
	data, ok := s.Data[key]
	if !ok {
		e.Required(p.Key(key), "")
		return
	}
	var any map[string]any
	if err := json.Unmarshal(data, &any); err != nil {
		e.Invalid(p.Key(key), "<secret contents redacted>", err.Error())
	}
}

func validateSecretUpdate(s, old *corev1.Secret) field.ErrorList {
	var e check.Errors
	if s.Type != old.Type {
		e.Invalid(field.NewPath("type"), s.Type, check.Immutable)
	}
	if isTrue(old.Immutable) {
		if !isTrue(s.Immutable) {
			e.Forbidden(field.NewPath("immutable"), immutableSet)
		}
		if !maps.EqualFunc(s.Data, old.Data, bytes.Equal) {
			e.Forbidden(field.NewPath("data"), immutableSet)
		}
	}
	e.Append(validateSecret(s))
	return e.List
}

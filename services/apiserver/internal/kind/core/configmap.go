package core

import (
	"bytes"
	"maps"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// ConfigMap returns the row of configmaps.
func ConfigMap() *resource.Kind {
	k := row.Namespaced[corev1.ConfigMap, corev1.ConfigMapList](corev1.SchemeGroupVersion, "configmaps", "configmaps")
	k.ShortNames = []string{"cm"}
	k.NoGeneration = true
	k.Columns = []metav1.TableColumnDefinition{
		column.Text("Data", column.Doc(corev1.ConfigMap{}, "data")), column.AgeColumn(),
	}
	k.Cells = func(o resource.Object) []any {
		c := o.(*corev1.ConfigMap)
		return []any{int64(len(c.Data) + len(c.BinaryData)), column.Age(c.CreationTimestamp)}
	}
	k.Rules = resource.Typed[*corev1.ConfigMap]{
		Validate: validateConfigMap,
		ValidateUpdate: func(c, old *corev1.ConfigMap) field.ErrorList {
			var e check.Errors
			if isTrue(old.Immutable) {
				if !isTrue(c.Immutable) {
					e.Forbidden(field.NewPath("immutable"), immutableSet)
				}
				if !maps.Equal(c.Data, old.Data) {
					e.Forbidden(field.NewPath("data"), immutableSet)
				}
				if !maps.EqualFunc(c.BinaryData, old.BinaryData, bytes.Equal) {
					e.Forbidden(field.NewPath("binaryData"), immutableSet)
				}
			}
			e.Append(validateConfigMap(c))
			return e.List
		},
	}.Rules()
	return k
}

const immutableSet = "field is immutable when `immutable` is set"

func isTrue(b *bool) bool { return b != nil && *b }

func validateConfigMap(c *corev1.ConfigMap) field.ErrorList {
	var e check.Errors
	size := 0
	for key, value := range c.Data {
		e.Messages(field.NewPath("data").Key(key), "", key, check.ConfigKey(key))
		if _, both := c.BinaryData[key]; both {
			e.Invalid(field.NewPath("data").Key(key), key, "duplicate of key present in binaryData")
		}
		size += len(value)
	}
	for key, value := range c.BinaryData {
		e.Messages(field.NewPath("binaryData").Key(key), "", key, check.ConfigKey(key))
		size += len(value)
	}
	if size > corev1.MaxSecretSize {
		e.List = append(e.List, field.TooLong(field.NewPath(""), c, corev1.MaxSecretSize))
	}
	return e.List
}

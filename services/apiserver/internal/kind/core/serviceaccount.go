package core

import (
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// keepSecretNames drops from the references to secrets all but their names.
func keepSecretNames(a *corev1.ServiceAccount) {
	for i := range a.Secrets {
		a.Secrets[i] = corev1.ObjectReference{Name: a.Secrets[i].Name}
	}
}

// ServiceAccount is the row of serviceaccounts.
func ServiceAccount() *resource.Kind {
	k := row.Namespaced[corev1.ServiceAccount, corev1.ServiceAccountList](corev1.SchemeGroupVersion, "serviceaccounts", "serviceaccounts")
	k.ReturnsDeleted = true
	k.ShortNames = []string{"sa"}
	k.NoGeneration = true
	k.Columns = []metav1.TableColumnDefinition{column.AgeColumn()}
	k.Cells = func(o resource.Object) []any {
		return []any{column.Age(o.(*corev1.ServiceAccount).CreationTimestamp)}
	}
	k.Rules = resource.Typed[*corev1.ServiceAccount]{
		PrepareCreate: keepSecretNames,
		PrepareUpdate: func(a, _ *corev1.ServiceAccount) { keepSecretNames(a) },
	}.Rules()
	k.Subresources = map[string]resource.Subresource{
		"token": row.Post(authenticationv1.SchemeGroupVersion.WithKind("TokenRequest"), "token"),
	}
	return k
}

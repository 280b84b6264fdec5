package core

import (
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// keepSecretNames drops everything but the names from references to secrets.
func keepSecretNames(a *corev1.ServiceAccount) {
	for i := range a.Secrets {
		a.Secrets[i] = corev1.ObjectReference{Name: a.Secrets[i].Name}
	}
}

const enforceSecrets = "kubernetes.io/enforce-mountable-secrets"

// accountWarnings returns a warning when a deprecated annotation is set.
func accountWarnings(a, old *corev1.ServiceAccount) []string {
	if _, set := a.Annotations[enforceSecrets]; !set {
		return nil
	}
	if old != nil {
		if _, was := old.Annotations[enforceSecrets]; was {
			return nil
		}
	}
	return []string{"metadata.annotations[" + enforceSecrets + "]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"}
}

// ServiceAccount returns the row of serviceaccounts.
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
		Warnings:      accountWarnings,
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"token": row.Action[authenticationv1.TokenRequest](authenticationv1.SchemeGroupVersion, resource.IssueToken),
	}
	return k
}

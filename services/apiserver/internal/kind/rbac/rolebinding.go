package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// RoleBinding is the row of rolebindings.
func RoleBinding() *resource.Kind {
	k := row.Namespaced[rbacv1.RoleBinding, rbacv1.RoleBindingList](rbacv1.SchemeGroupVersion, "rolebindings", "rolebindings")
	k.NoGeneration = true
	return k
}

package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Role is the row of roles.
func Role() *resource.Kind {
	k := row.Namespaced[rbacv1.Role, rbacv1.RoleList](rbacv1.SchemeGroupVersion, "roles", "roles")
	k.NoGeneration = true
	return k
}

package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// ClusterRole is the row of clusterroles.
func ClusterRole() *resource.Kind {
	k := row.Cluster[rbacv1.ClusterRole, rbacv1.ClusterRoleList](rbacv1.SchemeGroupVersion, "clusterroles", "clusterroles")
	k.NoGeneration = true
	return k
}

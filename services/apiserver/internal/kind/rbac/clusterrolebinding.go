package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// ClusterRoleBinding is the row of clusterrolebindings.
func ClusterRoleBinding() *resource.Kind {
	k := row.Cluster[rbacv1.ClusterRoleBinding, rbacv1.ClusterRoleBindingList](rbacv1.SchemeGroupVersion, "clusterrolebindings", "clusterrolebindings")
	k.NoGeneration = true
	return k
}

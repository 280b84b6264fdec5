package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// ClusterRoleBinding returns the row of clusterrolebindings. The role is immutable, the subjects
// are not.
func ClusterRoleBinding() *resource.Kind {
	k := row.Cluster[rbacv1.ClusterRoleBinding, rbacv1.ClusterRoleBindingList](rbacv1.SchemeGroupVersion, "clusterrolebindings", "clusterrolebindings")
	k.NoGeneration = true
	k.Columns = bindingColumns(rbacv1.ClusterRoleBinding{}, "clusterRoleBinding")
	k.Cells = func(o resource.Object) []any {
		b := o.(*rbacv1.ClusterRoleBinding)
		return bindingCells(b.RoleRef, b.Subjects, b.CreationTimestamp)
	}
	validate := func(b *rbacv1.ClusterRoleBinding) field.ErrorList {
		var e check.Errors
		validateRef(&e, &b.RoleRef, "ClusterRole")
		validateSubjects(&e, b.Subjects, false)
		return e.List
	}
	k.Rules = resource.Typed[*rbacv1.ClusterRoleBinding]{
		Default: func(b *rbacv1.ClusterRoleBinding) {
			defaultRef(&b.RoleRef)
			defaultSubjects(b.Subjects)
		},
		ValidateName: validateName,
		Validate:     validate,
		ValidateUpdate: func(b, old *rbacv1.ClusterRoleBinding) field.ErrorList {
			e := check.Errors{List: validate(b)}
			if b.RoleRef != old.RoleRef {
				e.Invalid(field.NewPath("roleRef"), b.RoleRef, check.Immutable)
			}
			return e.List
		},
		CreateOnUpdate: true,
	}.Rules()
	return k
}

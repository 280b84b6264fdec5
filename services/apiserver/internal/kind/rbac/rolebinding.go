package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// RoleBinding returns the row of rolebindings. The role is immutable, the subjects are not.
func RoleBinding() *resource.Kind {
	k := row.Namespaced[rbacv1.RoleBinding, rbacv1.RoleBindingList](rbacv1.SchemeGroupVersion, "rolebindings", "rolebindings")
	k.NoGeneration = true
	k.Columns = bindingColumns(rbacv1.RoleBinding{}, "roleBinding")
	k.Cells = func(o resource.Object) []any {
		b := o.(*rbacv1.RoleBinding)
		return bindingCells(b.RoleRef, b.Subjects, b.CreationTimestamp)
	}
	validate := func(b *rbacv1.RoleBinding) field.ErrorList {
		var e check.Errors
		validateRef(&e, &b.RoleRef, "Role", "ClusterRole")
		validateSubjects(&e, b.Subjects, true)
		return e.List
	}
	k.Rules = resource.Typed[*rbacv1.RoleBinding]{
		Default: func(b *rbacv1.RoleBinding) {
			defaultRef(&b.RoleRef)
			defaultSubjects(b.Subjects)
		},
		ValidateName: validateName,
		Validate:     validate,
		ValidateUpdate: func(b, old *rbacv1.RoleBinding) field.ErrorList {
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

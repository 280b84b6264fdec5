package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Role returns the row of roles.
func Role() *resource.Kind {
	k := row.Namespaced[rbacv1.Role, rbacv1.RoleList](rbacv1.SchemeGroupVersion, "roles", "roles")
	k.NoGeneration = true
	setCreatedAt(k)
	validate := func(r *rbacv1.Role) field.ErrorList {
		var e check.Errors
		validateRules(&e, r.Rules, true)
		return e.List
	}
	k.Rules = resource.Typed[*rbacv1.Role]{
		ValidateName:   validateName,
		Validate:       validate,
		ValidateUpdate: func(r, _ *rbacv1.Role) field.ErrorList { return validate(r) },
		CreateOnUpdate: true,
	}.Rules()
	return k
}

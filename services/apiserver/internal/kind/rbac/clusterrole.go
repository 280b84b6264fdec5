package rbac

import (
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// ClusterRole returns the row of clusterroles.
func ClusterRole() *resource.Kind {
	k := row.Cluster[rbacv1.ClusterRole, rbacv1.ClusterRoleList](rbacv1.SchemeGroupVersion, "clusterroles", "clusterroles")
	k.NoGeneration = true
	setCreatedAt(k)
	k.Rules = resource.Typed[*rbacv1.ClusterRole]{
		ValidateName:   validateName,
		Validate:       validateClusterRole,
		ValidateUpdate: func(r, _ *rbacv1.ClusterRole) field.ErrorList { return validateClusterRole(r) },
		CreateOnUpdate: true,
	}.Rules()
	return k
}

func validateClusterRole(r *rbacv1.ClusterRole) field.ErrorList {
	var e check.Errors
	validateRules(&e, r.Rules, false)
	if a := r.AggregationRule; a != nil {
		at := field.NewPath("aggregationRule", "clusterRoleSelectors")
		if len(a.ClusterRoleSelectors) == 0 {
			e.Required(at, "at least one clusterRoleSelector required if aggregationRule is non-nil")
		}
		for i := range a.ClusterRoleSelectors {
			s := &a.ClusterRoleSelectors[i]
			e.Append(validation.ValidateLabelSelector(s, validation.LabelSelectorValidationOptions{}, at.Index(i)))
			if _, err := metav1.LabelSelectorAsSelector(s); err != nil {
				e.Invalid(at.Index(i), nil, "invalid label selector.")
			}
		}
	}
	return e.List
}

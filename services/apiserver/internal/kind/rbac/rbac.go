// Package rbac contains the kinds of the group rbac.authorization.k8s.io, with a file for each
// kind.
//
// Its rules must only use the objects that they are given.
package rbac

import (
	"k8s.io/apimachinery/pkg/api/validation/path"

	"keelson.dev/services/apiserver/internal/resource"
)

// Kinds returns the rows of the group. Names may be any path segment, such as "system:node".
func Kinds() []*resource.Kind {
	rows := []*resource.Kind{
		ClusterRole(),
		ClusterRoleBinding(),
		Role(),
		RoleBinding(),
	}
	for _, k := range rows {
		k.Rules.ValidateName = path.ValidatePathSegmentName
	}
	return rows
}

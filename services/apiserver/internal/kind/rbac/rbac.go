// Package rbac holds the kinds of the group rbac.authorization.k8s.io: one file a kind.
//
// Its rules must never look at anything but the objects that they are given.
package rbac

import (
	"k8s.io/apimachinery/pkg/api/validation/path"

	"keelson.dev/services/apiserver/internal/resource"
)

// Kinds are the rows of the group. Their names may be any segment of a path:
// "system:node".
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

// Package networking contains the kinds of the group networking.k8s.io, with a file for each kind.
//
// Its rules must only use the objects that they are given.
package networking

import "keelson.dev/services/apiserver/internal/resource"

// Kinds returns the rows of the group.
func Kinds() []*resource.Kind {
	return []*resource.Kind{
		NetworkPolicy(),
		Ingress(),
		IngressClass(),
	}
}

// Package discovery contains the kinds of the group discovery.k8s.io, with a file for each kind.
//
// Its rules must only use the objects that they are given.
package discovery

import "keelson.dev/services/apiserver/internal/resource"

// Kinds returns the rows of the group.
func Kinds() []*resource.Kind {
	return []*resource.Kind{
		EndpointSlice(),
	}
}

// Package events contains the kinds of the group events.k8s.io.
//
// Its rules must only use the objects that they are given.
package events

import "keelson.dev/services/apiserver/internal/resource"

// Kinds returns the rows of the group.
func Kinds() []*resource.Kind {
	return []*resource.Kind{Event()}
}

// Package events holds the kinds of the group events.k8s.io.
//
// Its rules must never look at anything but the objects that they are given.
package events

import "keelson.dev/services/apiserver/internal/resource"

// Kinds are the rows of the group.
func Kinds() []*resource.Kind {
	return []*resource.Kind{Event()}
}

// Package batch holds the kinds of the group batch: one file a kind.
//
// Its rules must never look at anything but the objects that they are given.
package batch

import "keelson.dev/services/apiserver/internal/resource"

// Kinds are the rows of the group.
func Kinds() []*resource.Kind {
	return []*resource.Kind{
		Job(),
	}
}

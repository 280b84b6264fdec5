// Package apps holds the kinds of the group apps: one file a kind.
//
// Its rules must never look at anything but the objects that they are given.
package apps

import "keelson.dev/services/apiserver/internal/resource"

// Kinds are the rows of the group.
func Kinds() []*resource.Kind {
	return []*resource.Kind{
		Deployment(),
		ReplicaSet(),
	}
}

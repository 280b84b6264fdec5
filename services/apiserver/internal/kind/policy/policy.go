// Package policy holds the kinds of the group policy, one file per kind.
//
// Its rules must never look at anything but the objects that they are given.
package policy

import "keelson.dev/services/apiserver/internal/resource"

// Kinds returns the rows of the group.
func Kinds() []*resource.Kind {
	return []*resource.Kind{
		PodDisruptionBudget(),
	}
}

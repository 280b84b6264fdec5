// Package apps contains the kinds of the group apps, with a file for each kind.
//
// Its rules must only use the objects that they are given.
package apps

import "keelson.dev/services/apiserver/internal/resource"

// Kinds returns the rows of the group.
func Kinds() []*resource.Kind {
	return []*resource.Kind{
		Deployment(),
		ReplicaSet(),
		DaemonSet(),
		StatefulSet(),
		ControllerRevision(),
	}
}

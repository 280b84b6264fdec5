// Package core holds the kinds of the core group, v1: one file a kind.
//
// Its rules must never look at anything but the objects that they are given.
package core

import "keelson.dev/services/apiserver/internal/resource"

// Kinds are the rows of the group.
func Kinds() []*resource.Kind {
	return []*resource.Kind{
		Namespace(),
		Node(),
		Pod(),
		Service(),
		Endpoints(),
		ConfigMap(),
		Secret(),
		ServiceAccount(),
		Event(),
		PersistentVolume(),
		PersistentVolumeClaim(),
		Binding(),
	}
}

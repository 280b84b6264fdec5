// Package core contains the kinds of the core group, v1, with a file for each kind.
//
// Its rules must only use the objects that they are given.
package core

import "keelson.dev/services/apiserver/internal/resource"

// Kinds returns the rows of the group.
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
		PodTemplate(),
		ReplicationController(),
		LimitRange(),
		ResourceQuota(),
		Binding(),
	}
}

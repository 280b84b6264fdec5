package core

import (
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// PersistentVolume is the row of persistentvolumes.
func PersistentVolume() *resource.Kind {
	k := row.Cluster[corev1.PersistentVolume, corev1.PersistentVolumeList](corev1.SchemeGroupVersion, "persistentvolumes", "persistentvolumes")
	k.ShortNames = []string{"pv"}
	k.NoGeneration = true
	k.Rules = resource.Typed[*corev1.PersistentVolume]{
		PrepareCreate: func(v *corev1.PersistentVolume) {
			v.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumePending}
		},
		PrepareUpdate: func(v, old *corev1.PersistentVolume) { v.Status = old.Status },
	}.Rules()
	k.Subresources = map[string]resource.Subresource{
		"status": row.View(resource.Typed[*corev1.PersistentVolume]{
			PrepareUpdate: func(v, old *corev1.PersistentVolume) { v.Spec = old.Spec },
		}.Rules()),
	}
	return k
}

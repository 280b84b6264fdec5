package core

import (
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// PersistentVolumeClaim is the row of persistentvolumeclaims.
func PersistentVolumeClaim() *resource.Kind {
	k := row.Namespaced[corev1.PersistentVolumeClaim, corev1.PersistentVolumeClaimList](
		corev1.SchemeGroupVersion, "persistentvolumeclaims", "persistentvolumeclaims")
	k.ShortNames = []string{"pvc"}
	k.NoGeneration = true
	k.Rules = resource.Typed[*corev1.PersistentVolumeClaim]{
		PrepareCreate: func(c *corev1.PersistentVolumeClaim) {
			c.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
		},
		PrepareUpdate: func(c, old *corev1.PersistentVolumeClaim) { c.Status = old.Status },
	}.Rules()
	k.Subresources = map[string]resource.Subresource{
		"status": row.View(resource.Typed[*corev1.PersistentVolumeClaim]{
			PrepareUpdate: func(c, old *corev1.PersistentVolumeClaim) { c.Spec = old.Spec },
		}.Rules()),
	}
	return k
}

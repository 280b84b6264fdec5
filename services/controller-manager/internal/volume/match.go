package volume

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// selectedNode is set by the scheduler on a claim whose class waits for its
// first consumer.
const selectedNode = "volume.kubernetes.io/selected-node"

// class returns the storage class of a claim; "" asks for a volume without one.
func class(c *corev1.PersistentVolumeClaim) string {
	if c.Spec.StorageClassName != nil {
		return *c.Spec.StorageClassName
	}
	return c.Annotations[corev1.BetaStorageClassAnnotation]
}

// Default returns the newest of the classes that are marked as default, as in
// Kubernetes, or nil if none is.
func Default(classes []*storagev1.StorageClass) *storagev1.StorageClass {
	var best *storagev1.StorageClass
	for _, sc := range classes {
		if sc.Annotations["storageclass.kubernetes.io/is-default-class"] != "true" {
			continue
		}
		if best == nil || best.CreationTimestamp.Before(&sc.CreationTimestamp) ||
			best.CreationTimestamp.Equal(&sc.CreationTimestamp) && sc.Name < best.Name {
			best = sc
		}
	}
	return best
}

// refersTo reports whether a volume is meant for the claim: by uid, or by name
// alone if it was reserved by hand.
func refersTo(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	ref := v.Spec.ClaimRef
	return ref != nil && ref.Namespace == c.Namespace && ref.Name == c.Name && (ref.UID == "" || ref.UID == c.UID)
}

func mode(m *corev1.PersistentVolumeMode) corev1.PersistentVolumeMode {
	if m == nil {
		return corev1.PersistentVolumeFilesystem
	}
	return *m
}

// Fits reports whether a volume satisfies the claim, whichever claim it is bound to.
func Fits(v *corev1.PersistentVolume, c *corev1.PersistentVolumeClaim) bool {
	if v.DeletionTimestamp != nil || v.Spec.StorageClassName != class(c) || mode(v.Spec.VolumeMode) != mode(c.Spec.VolumeMode) {
		return false
	}
	for _, m := range c.Spec.AccessModes {
		if !slices.Contains(v.Spec.AccessModes, m) {
			return false
		}
	}
	have, want := v.Spec.Capacity[corev1.ResourceStorage], c.Spec.Resources.Requests[corev1.ResourceStorage]
	if have.Cmp(want) < 0 {
		return false
	}
	if c.Spec.Selector != nil {
		s, err := metav1.LabelSelectorAsSelector(c.Spec.Selector)
		if err != nil || !s.Matches(labels.Set(v.Labels)) {
			return false
		}
	}
	return true
}

// Best returns the volume to bind to a claim: one reserved for it, or else the smallest
// free one that fits. It returns nil if there is none.
func Best(c *corev1.PersistentVolumeClaim, volumes []*corev1.PersistentVolume) *corev1.PersistentVolume {
	var best *corev1.PersistentVolume
	for _, v := range volumes {
		if refersTo(v, c) && v.DeletionTimestamp == nil {
			return v
		}
		if v.Spec.ClaimRef != nil || !Fits(v, c) {
			continue
		}
		if best == nil || smaller(v, best) {
			best = v
		}
	}
	return best
}

func smaller(a, b *corev1.PersistentVolume) bool {
	x, y := a.Spec.Capacity[corev1.ResourceStorage], b.Spec.Capacity[corev1.ResourceStorage]
	if c := x.Cmp(y); c != 0 {
		return c < 0
	}
	return a.Name < b.Name
}

// Waits reports whether a claim of the class waits until a pod uses it.
func Waits(c *corev1.PersistentVolumeClaim, sc *storagev1.StorageClass) bool {
	return sc != nil && sc.VolumeBindingMode != nil && *sc.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer &&
		c.Annotations[selectedNode] == ""
}

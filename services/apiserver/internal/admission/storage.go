package admission

import (
	"context"
	"errors"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	"keelson.dev/services/apiserver/internal/kind/storage"
	"keelson.dev/services/apiserver/internal/resource"
)

const (
	pvcProtection = "kubernetes.io/pvc-protection"
	pvProtection  = "kubernetes.io/pv-protection"
)

// DefaultStorageClass sets the default storage class on claims that name none.
type DefaultStorageClass struct{ State State }

// Admit implements Mutator.
func (p *DefaultStorageClass) Admit(_ context.Context, a *Attributes) error {
	claim, ok := a.Object.(*corev1.PersistentVolumeClaim)
	if !ok || a.Operation != Create || !a.Is("", "persistentvolumeclaims") {
		return nil
	}
	if _, beta := claim.Annotations[corev1.BetaStorageClassAnnotation]; beta || claim.Spec.StorageClassName != nil {
		return nil
	}
	class := storage.PickDefault(func(yield func(resource.Object) bool) {
		p.State.Each("storage.k8s.io", "storageclasses", "", yield)
	})
	if class != nil {
		name := class.GetName()
		claim.Spec.StorageClassName = &name
	}
	return nil
}

// StorageProtection adds the finalizers that keep claims and volumes while they are in use. The
// controllers that watch their use remove them.
type StorageProtection struct{}

// Admit implements Mutator.
func (StorageProtection) Admit(_ context.Context, a *Attributes) error {
	if a.Operation != Create || a.Subresource != "" {
		return nil
	}
	switch {
	case a.Is("", "persistentvolumeclaims"):
		addFinalizer(a.Object, pvcProtection)
	case a.Is("", "persistentvolumes"):
		addFinalizer(a.Object, pvProtection)
	}
	return nil
}

func addFinalizer(obj resource.Object, name string) {
	if have := obj.GetFinalizers(); !slices.Contains(have, name) {
		obj.SetFinalizers(append(slices.Clone(have), name))
	}
}

// ClaimResize allows a claim to grow only if it is bound and its storage class allows expansion.
type ClaimResize struct{ State State }

// Validate implements Validator.
func (p *ClaimResize) Validate(_ context.Context, a *Attributes) error {
	claim, ok := a.Object.(*corev1.PersistentVolumeClaim)
	old, was := a.Old.(*corev1.PersistentVolumeClaim)
	if !ok || !was || a.Operation != Update || !a.Is("", "persistentvolumeclaims") {
		return nil
	}
	if claim.Spec.Resources.Requests.Storage().Cmp(*old.Spec.Resources.Requests.Storage()) <= 0 {
		return nil
	}
	if old.Status.Phase != corev1.ClaimBound {
		return errors.New("Only bound persistent volume claims can be expanded") //nolint:staticcheck // Kubernetes' text
	}
	if name := className(claim); name != "" {
		obj, _ := p.State.Get("storage.k8s.io", "storageclasses", "", name)
		if class, ok := obj.(*storagev1.StorageClass); ok && class.AllowVolumeExpansion != nil && *class.AllowVolumeExpansion {
			return nil
		}
	}
	return errors.New("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize")
}

func className(claim *corev1.PersistentVolumeClaim) string {
	if name, ok := claim.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		return name
	}
	if claim.Spec.StorageClassName != nil {
		return *claim.Spec.StorageClassName
	}
	return ""
}

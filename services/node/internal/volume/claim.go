package volume

import (
	"context"
	"fmt"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// LocalDataFinalizer is the finalizer of PersistentVolumes whose data this node keeps in a
// directory that it creates, and removes when the volume is deleted.
const LocalDataFinalizer = "keelson.dev/local-data"

// claim sets up the PersistentVolume that a claim is bound to.
func (m mount) claim(ctx context.Context, name string, readOnly bool) (Mounted, error) {
	objects := m.set.cfg.Objects
	pvc, err := objects.Claim(ctx, m.pod.Namespace, name)
	switch {
	case err != nil:
		return Mounted{}, fmt.Errorf("persistentvolumeclaim %q: %w", name, err)
	case pvc == nil:
		return Mounted{}, fmt.Errorf("persistentvolumeclaim %q not found", name)
	case pvc.Status.Phase != corev1.ClaimBound || pvc.Spec.VolumeName == "":
		return Mounted{}, fmt.Errorf("persistentvolumeclaim %q is not bound", name)
	case m.v.Ephemeral != nil && !ownedBy(pvc, m.pod):
		return Mounted{}, fmt.Errorf("persistentvolumeclaim %q was not created for this pod", name)
	}
	pv, err := objects.PersistentVolume(ctx, pvc.Spec.VolumeName)
	switch {
	case err != nil:
		return Mounted{}, fmt.Errorf("persistentvolume %q: %w", pvc.Spec.VolumeName, err)
	case pv == nil:
		return Mounted{}, fmt.Errorf("persistentvolume %q not found", pvc.Spec.VolumeName)
	case pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != pvc.UID:
		return Mounted{}, fmt.Errorf("persistentvolume %q is bound to another claim", pv.Name)
	case pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == corev1.PersistentVolumeBlock:
		return Mounted{}, fmt.Errorf("persistentvolume %q: raw block volumes are not supported", pv.Name)
	}
	out, err := m.persistent(pv)
	if err != nil {
		return out, fmt.Errorf("persistentvolume %q: %w", pv.Name, err)
	}
	out.ReadOnly = readOnly
	policy := corev1.FSGroupChangeAlways
	if sc := m.pod.Spec.SecurityContext; sc != nil && sc.FSGroupChangePolicy != nil {
		policy = *sc.FSGroupChangePolicy
	}
	if pv.Spec.Local != nil && !readOnly {
		return out, own(out.Path, m.group, policy, false)
	}
	return out, nil
}

func (m mount) persistent(pv *corev1.PersistentVolume) (Mounted, error) {
	switch {
	case pv.Spec.Local != nil:
		dir := pv.Spec.Local.Path
		if hasFinalizer(pv) {
			if !strings.HasPrefix(dir, "/") || strings.Contains(dir, "/../") {
				return Mounted{}, fmt.Errorf("path %q is not absolute", dir)
			}
			if err := os.MkdirAll(dir, 0o777); err != nil {
				return Mounted{}, err
			}
			if info, err := os.Stat(dir); err == nil && info.Mode().Perm() == 0o755 {
				// A new volume must be writable for any user that a container runs as.
				if entries, err := os.ReadDir(dir); err == nil && len(entries) == 0 {
					if err := os.Chmod(dir, 0o777); err != nil {
						return Mounted{}, err
					}
				}
			}
		} else if _, err := os.Stat(dir); err != nil {
			return Mounted{}, err
		}
		return Mounted{Path: dir}, nil
	case pv.Spec.HostPath != nil:
		return hostPath(pv.Spec.HostPath.Path, pv.Spec.HostPath.Type)
	}
	return Mounted{}, fmt.Errorf("the volume type is not supported")
}

func hasFinalizer(pv *corev1.PersistentVolume) bool {
	for _, f := range pv.Finalizers {
		if f == LocalDataFinalizer {
			return true
		}
	}
	return false
}

func ownedBy(pvc *corev1.PersistentVolumeClaim, p *corev1.Pod) bool {
	for _, ref := range pvc.OwnerReferences {
		if ref.UID == p.UID {
			return true
		}
	}
	return false
}

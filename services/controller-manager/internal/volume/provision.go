package volume

import (
	"fmt"
	"path"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// Provisioner is the provisioner name of classes that provide local volumes.
	Provisioner = "keelson.dev/local"
	// DataFinalizer keeps a local volume's object until the node with its directory has
	// deleted the directory.
	DataFinalizer = "keelson.dev/local-data"

	// NodeLabel names the node that keeps a volume's data: it may watch and
	// release the volumes that bear its name.
	NodeLabel = "keelson.dev/node"

	provisionedBy = "pv.kubernetes.io/provisioned-by"
	boundByUs     = "pv.kubernetes.io/bound-by-controller"
	bindCompleted = "pv.kubernetes.io/bind-completed"
)

// DefaultClass is the storage class of a new cluster.
func DefaultClass() *storagev1.StorageClass {
	reclaim, binding := corev1.PersistentVolumeReclaimDelete, storagev1.VolumeBindingWaitForFirstConsumer
	return &storagev1.StorageClass{
		ObjectMeta:        metav1.ObjectMeta{Name: "local", Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}},
		Provisioner:       Provisioner,
		ReclaimPolicy:     &reclaim,
		VolumeBindingMode: &binding,
	}
}

// Local returns a new volume for a claim on a node, or why there can be none. dir is
// the directory of all local volumes on every node.
func Local(c *corev1.PersistentVolumeClaim, sc *storagev1.StorageClass, node *corev1.Node, dir string) (*corev1.PersistentVolume, error) {
	switch {
	case mode(c.Spec.VolumeMode) != corev1.PersistentVolumeFilesystem:
		return nil, fmt.Errorf("volumeMode %s: %s makes file systems only", mode(c.Spec.VolumeMode), Provisioner)
	case c.Spec.DataSource != nil || c.Spec.DataSourceRef != nil:
		return nil, fmt.Errorf("dataSource: %s cannot copy volumes", Provisioner)
	case c.Spec.Selector != nil:
		return nil, fmt.Errorf("selector: %s makes new volumes, which have no labels to select", Provisioner)
	}
	for _, m := range c.Spec.AccessModes {
		if m != corev1.ReadWriteOnce && m != corev1.ReadWriteOncePod {
			return nil, fmt.Errorf("accessModes %s: a local volume is on one node (ReadWriteOnce)", m)
		}
	}
	for k := range sc.Parameters {
		return nil, fmt.Errorf("parameter %s of storage class %s: %s takes none", k, sc.Name, Provisioner)
	}
	reclaim := corev1.PersistentVolumeReclaimDelete
	if sc.ReclaimPolicy != nil {
		reclaim = *sc.ReclaimPolicy
	}
	filesystem := corev1.PersistentVolumeFilesystem
	name := "pvc-" + string(c.UID)
	host := node.Labels[corev1.LabelHostname]
	if host == "" {
		host = node.Name
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{
			Name:        name,
			Labels:      map[string]string{NodeLabel: node.Name},
			Annotations: map[string]string{provisionedBy: Provisioner},
			Finalizers:  []string{"kubernetes.io/pv-protection", DataFinalizer},
		},
		Spec: corev1.PersistentVolumeSpec{
			Capacity:    corev1.ResourceList{corev1.ResourceStorage: c.Spec.Resources.Requests[corev1.ResourceStorage]},
			AccessModes: c.Spec.AccessModes,
			ClaimRef: &corev1.ObjectReference{
				APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID, ResourceVersion: c.ResourceVersion,
			},
			PersistentVolumeReclaimPolicy: reclaim,
			StorageClassName:              sc.Name,
			VolumeMode:                    &filesystem,
			MountOptions:                  sc.MountOptions,
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path.Join(dir, name)}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{host}}},
			}}}},
		},
	}, nil
}

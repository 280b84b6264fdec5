package core

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// PersistentVolume returns the row of persistentvolumes.
func PersistentVolume() *resource.Kind {
	k := row.Cluster[corev1.PersistentVolume, corev1.PersistentVolumeList](corev1.SchemeGroupVersion, "persistentvolumes", "persistentvolumes")
	k.ReturnsDeleted = true
	k.ShortNames = []string{"pv"}
	k.NoGeneration = true
	k.Columns, k.Cells = volumeColumns(), volumeCells
	k.Rules = resource.Typed[*corev1.PersistentVolume]{
		Default: defaultVolume,
		PrepareCreate: func(v *corev1.PersistentVolume) {
			now := metav1.Now()
			v.Status = corev1.PersistentVolumeStatus{Phase: corev1.VolumePending, LastPhaseTransitionTime: &now}
		},
		PrepareUpdate:  func(v, old *corev1.PersistentVolume) { v.Status = old.Status },
		Warnings:       func(v, _ *corev1.PersistentVolume) []string { return volumeWarnings(v) },
		Validate:       validateVolume,
		ValidateUpdate: validateVolumeUpdate,
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*corev1.PersistentVolume]{
			Default: defaultVolume,
			PrepareUpdate: func(v, old *corev1.PersistentVolume) {
				v.Spec = old.Spec
				keepTransition(v, old)
			},
		}.Rules()),
	}
	return k
}

// keepTransition records when the phase changed, unless the client has set the time.
func keepTransition(v, old *corev1.PersistentVolume) {
	was, now := old.Status.LastPhaseTransitionTime, v.Status.LastPhaseTransitionTime
	switch {
	case v.Status.Phase == old.Status.Phase:
		if now == nil {
			v.Status.LastPhaseTransitionTime = was
		}
	case now == nil || was != nil && now.Equal(was):
		t := metav1.Now()
		v.Status.LastPhaseTransitionTime = &t
	}
}

func defaultVolume(v *corev1.PersistentVolume) {
	s := &v.Spec
	if v.Status.Phase == "" {
		v.Status.Phase = corev1.VolumePending
	}
	if s.PersistentVolumeReclaimPolicy == "" {
		s.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	}
	if s.VolumeMode == nil {
		mode := corev1.PersistentVolumeFilesystem
		s.VolumeMode = &mode
	}
	if s.HostPath != nil && s.HostPath.Type == nil {
		unset := corev1.HostPathUnset
		s.HostPath.Type = &unset
	}
	podspec.DefaultResources(s.Capacity)
}

var accessModes = []corev1.PersistentVolumeAccessMode{
	corev1.ReadOnlyMany, corev1.ReadWriteMany, corev1.ReadWriteOnce, corev1.ReadWriteOncePod,
}

// volumeWarnings returns the warnings of a volume.
func volumeWarnings(v *corev1.PersistentVolume) []string {
	list := classAnnotationWarning(v.Annotations)
	const mountOptions = "volume.beta.kubernetes.io/mount-options"
	if _, set := v.Annotations[mountOptions]; set {
		list = append(list, "metadata.annotations["+mountOptions+"]: deprecated since v1.31; use \"mountOptions\" attribute instead")
	}
	if v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		list = append(list, "spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.")
	}
	if v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return list
	}
	p := field.NewPath("spec", "nodeAffinity", "required", "nodeSelectorTerms")
	for i, term := range v.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for j, e := range term.MatchExpressions {
			if why := check.DeprecatedNodeLabel(e.Key); why != "" {
				list = append(list, fmt.Sprintf("%s: %s is %s", p.Index(i).Child("matchExpressions").Index(j).Child("key"), e.Key, why))
			}
		}
	}
	return list
}

// classAnnotationWarning warns about the annotation for a class that predates the field.
func classAnnotationWarning(annotations map[string]string) []string {
	if _, set := annotations[storageClassAnnotation]; !set {
		return nil
	}
	return []string{"metadata.annotations[" + storageClassAnnotation + "]: deprecated since v1.8; use \"storageClassName\" attribute instead"}
}

func validateModes(e *check.Errors, modes []corev1.PersistentVolumeAccessMode, p *field.Path, missing string) {
	if len(modes) == 0 {
		e.Required(p, missing)
	}
	for _, m := range modes {
		if !slices.Contains(accessModes, m) {
			e.List = append(e.List, field.NotSupported(p, m, accessModes))
		}
	}
	if slices.Contains(modes, corev1.ReadWriteOncePod) && len(modes) > 1 {
		e.Forbidden(p, "may not use ReadWriteOncePod with other access modes")
	}
}

func validateVolume(v *corev1.PersistentVolume) field.ErrorList {
	var e check.Errors
	s, p := &v.Spec, field.NewPath("spec")
	validateModes(&e, s.AccessModes, p.Child("accessModes"), "")
	if len(s.Capacity) == 0 {
		e.Required(p.Child("capacity"), "")
	}
	if _, ok := s.Capacity[corev1.ResourceStorage]; !ok || len(s.Capacity) > 1 {
		e.List = append(e.List, field.NotSupported(p.Child("capacity"), s.Capacity, []corev1.ResourceName{corev1.ResourceStorage}))
	}
	for name, q := range s.Capacity {
		if q.Sign() < 0 {
			e.Invalid(p.Child("capacity").Key(string(name)), q.Value(), "must be a valid resource quantity")
		}
		if q.Sign() <= 0 {
			e.Invalid(p.Child("capacity").Key(string(name)), q.String(), "must be greater than zero")
		}
	}
	check.OneOf(&e, p, "persistentVolumeReclaimPolicy", s.PersistentVolumeReclaimPolicy,
		corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRecycle, corev1.PersistentVolumeReclaimRetain)
	validateVolumeSource(&e, v, p)
	if s.StorageClassName != "" {
		e.Messages(p, "storageClassName", s.StorageClassName, check.Subdomain(s.StorageClassName))
	}
	validateVolumeMode(&e, s.VolumeMode, p)
	if n := s.VolumeAttributesClassName; n != nil {
		if *n == "" {
			e.Required(p.Child("volumeAttributesClassName"), "an empty string is disallowed")
		} else {
			e.Messages(p, "volumeAttributesClassName", *n, check.Subdomain(*n))
		}
		if s.CSI == nil {
			e.Required(p.Child("csi"), "has to be specified when using volumeAttributesClassName")
		}
	}
	if a := s.NodeAffinity; a != nil {
		if a.Required == nil {
			e.Required(p.Child("nodeAffinity", "required"), "must specify required node constraints")
		} else {
			podspec.ValidateNodeSelector(&e, a.Required, p.Child("nodeAffinity", "required"))
		}
	}
	return e.List
}

func validateVolumeMode(e *check.Errors, mode *corev1.PersistentVolumeMode, p *field.Path) {
	if mode == nil {
		return
	}
	check.Supported(e, p, "volumeMode", *mode, corev1.PersistentVolumeBlock, corev1.PersistentVolumeFilesystem)
	if *mode == corev1.PersistentVolumeBlock {
		e.Unsupported(p.Child("volumeMode"), "block volumes are")
	}
}

func validateVolumeSource(e *check.Errors, v *corev1.PersistentVolume, p *field.Path) {
	s := &v.Spec.PersistentVolumeSource
	count := 0
	one := func(set bool, name string) bool {
		if !set {
			return false
		}
		if count++; count > 1 {
			e.Forbidden(p.Child(name), "may not specify more than 1 volume type")
			return false
		}
		return true
	}
	if one(s.HostPath != nil, "hostPath") {
		validateVolumeHostPath(e, v, p)
	}
	if one(s.Local != nil, "local") {
		validateLocal(e, v, p)
	}
	for _, other := range unsupportedVolumeSources(s) {
		if one(true, other) {
			e.Unsupported(p.Child(other), "volumes of this type are")
		}
	}
	if count == 0 {
		e.Required(p, "must specify a volume type")
	}
}

func validateVolumeHostPath(e *check.Errors, v *corev1.PersistentVolume, p *field.Path) {
	path := v.Spec.HostPath.Path
	at := p.Child("hostPath")
	if path == "" {
		e.Required(at.Child("path"), "")
		return
	}
	noBacksteps(e, path, at.Child("path"))
	if t := v.Spec.HostPath.Type; t != nil {
		check.Supported(e, at, "type", *t,
			corev1.HostPathUnset, corev1.HostPathBlockDev, corev1.HostPathCharDev, corev1.HostPathDirectory,
			corev1.HostPathDirectoryOrCreate, corev1.HostPathFile, corev1.HostPathFileOrCreate, corev1.HostPathSocket)
	}
	if strings.TrimRight(path, "/") == "" && v.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimRecycle {
		e.Forbidden(p.Child("persistentVolumeReclaimPolicy"), "may not be 'recycle' for a hostPath mount of '/'")
	}
}

func noBacksteps(e *check.Errors, path string, p *field.Path) {
	if slices.Contains(strings.Split(path, "/"), "..") {
		e.Invalid(p, path, "must not contain '..'")
	}
}

func validateLocal(e *check.Errors, v *corev1.PersistentVolume, p *field.Path) {
	path := v.Spec.Local.Path
	if path == "" {
		e.Required(p.Child("local", "path"), "")
	} else {
		noBacksteps(e, path, p.Child("local", "path"))
	}
	if v.Spec.NodeAffinity == nil {
		e.Required(p.Child("nodeAffinity"), "Local volume requires node affinity")
	}
}

// unsupportedVolumeSources returns the names of sources that nodes cannot mount.
func unsupportedVolumeSources(s *corev1.PersistentVolumeSource) []string {
	var names []string
	add := func(set bool, name string) {
		if set {
			names = append(names, name)
		}
	}
	add(s.GCEPersistentDisk != nil, "gcePersistentDisk")
	add(s.AWSElasticBlockStore != nil, "awsElasticBlockStore")
	add(s.Glusterfs != nil, "glusterfs")
	add(s.NFS != nil, "nfs")
	add(s.RBD != nil, "rbd")
	add(s.ISCSI != nil, "iscsi")
	add(s.Cinder != nil, "cinder")
	add(s.CephFS != nil, "cephfs")
	add(s.FC != nil, "fc")
	add(s.Flocker != nil, "flocker")
	add(s.FlexVolume != nil, "flexVolume")
	add(s.AzureFile != nil, "azureFile")
	add(s.VsphereVolume != nil, "vsphereVolume")
	add(s.Quobyte != nil, "quobyte")
	add(s.AzureDisk != nil, "azureDisk")
	add(s.PhotonPersistentDisk != nil, "photonPersistentDisk")
	add(s.PortworxVolume != nil, "portworxVolume")
	add(s.ScaleIO != nil, "scaleIO")
	add(s.StorageOS != nil, "storageos")
	add(s.CSI != nil, "csi")
	return names
}

func validateVolumeUpdate(v, old *corev1.PersistentVolume) field.ErrorList {
	e := check.Errors{List: validateVolume(v)}
	p := field.NewPath("spec")
	if !check.Same(&v.Spec.PersistentVolumeSource, &old.Spec.PersistentVolumeSource) {
		e.Forbidden(p.Child("persistentvolumesource"), "spec.persistentvolumesource is immutable after creation\n"+
			check.Differences(old.Spec.PersistentVolumeSource, v.Spec.PersistentVolumeSource))
	}
	if !equality.Semantic.DeepEqual(v.Spec.VolumeMode, old.Spec.VolumeMode) {
		e.Invalid(field.NewPath("volumeMode"), v.Spec.VolumeMode, check.Immutable)
	}
	if old.Spec.NodeAffinity != nil && !equality.Semantic.DeepEqual(v.Spec.NodeAffinity, old.Spec.NodeAffinity) {
		e.Invalid(field.NewPath("nodeAffinity"), v.Spec.NodeAffinity, "field is immutable, except for updating from beta label to GA")
	}
	return e.List
}

func volumeColumns() []metav1.TableColumnDefinition {
	spec, status := corev1.PersistentVolumeSpec{}, corev1.PersistentVolumeStatus{}
	return []metav1.TableColumnDefinition{
		column.Text("Capacity", column.Doc(spec, "capacity")),
		column.Text("Access Modes", column.Doc(spec, "accessModes")),
		column.Text("Reclaim Policy", column.Doc(spec, "persistentVolumeReclaimPolicy")),
		column.Text("Status", column.Doc(status, "phase")),
		column.Text("Claim", column.Doc(spec, "claimRef")),
		column.Text("StorageClass", "StorageClass of the pv"),
		column.Text("VolumeAttributesClass", "VolumeAttributesClass of the pv"),
		column.Text("Reason", column.Doc(status, "reason")),
		column.AgeColumn(),
		column.Wide("VolumeMode", column.Doc(spec, "volumeMode")),
	}
}

// storageClassAnnotation is the annotation for a class that predates the field.
const storageClassAnnotation = "volume.beta.kubernetes.io/storage-class"

func volumeCells(o resource.Object) []any {
	v := o.(*corev1.PersistentVolume)
	claim := ""
	if r := v.Spec.ClaimRef; r != nil {
		claim = r.Namespace + "/" + r.Name
	}
	phase := string(v.Status.Phase)
	if v.DeletionTimestamp != nil {
		phase = "Terminating"
	}
	size := v.Spec.Capacity[corev1.ResourceStorage]
	class := v.Spec.StorageClassName
	if a, ok := v.Annotations[storageClassAnnotation]; ok {
		class = a
	}
	return []any{
		size.String(), column.AccessModes(v.Spec.AccessModes), string(v.Spec.PersistentVolumeReclaimPolicy), phase, claim,
		class, attributesClass(v.Spec.VolumeAttributesClassName), v.Status.Reason, column.Age(v.CreationTimestamp),
		volumeMode(v.Spec.VolumeMode),
	}
}

func attributesClass(name *string) string {
	if name == nil || *name == "" {
		return column.Unset
	}
	return *name
}

func volumeMode(mode *corev1.PersistentVolumeMode) string {
	if mode == nil {
		return column.Unset
	}
	return string(*mode)
}

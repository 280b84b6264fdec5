package core

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// PersistentVolumeClaim returns the row of persistentvolumeclaims.
func PersistentVolumeClaim() *resource.Kind {
	k := row.Namespaced[corev1.PersistentVolumeClaim, corev1.PersistentVolumeClaimList](
		corev1.SchemeGroupVersion, "persistentvolumeclaims", "persistentvolumeclaims")
	k.ReturnsDeleted = true
	k.ShortNames = []string{"pvc"}
	k.NoGeneration = true
	k.Columns, k.Cells = claimColumns(), claimCells
	k.Rules = resource.Typed[*corev1.PersistentVolumeClaim]{
		Default: defaultClaim,
		PrepareCreate: func(c *corev1.PersistentVolumeClaim) {
			c.Status = corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimPending}
			pairDataSources(&c.Spec)
		},
		PrepareUpdate:  func(c, old *corev1.PersistentVolumeClaim) { c.Status = old.Status },
		Warnings:       func(c, _ *corev1.PersistentVolumeClaim) []string { return claimWarnings(c) },
		Validate:       validateClaim,
		ValidateUpdate: validateClaimUpdate,
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*corev1.PersistentVolumeClaim]{
			Default:        defaultClaim,
			PrepareUpdate:  func(c, old *corev1.PersistentVolumeClaim) { c.Spec = old.Spec },
			ValidateUpdate: validateClaimStatus,
		}.Rules()),
	}
	return k
}

func defaultClaim(c *corev1.PersistentVolumeClaim) {
	if c.Status.Phase == "" {
		c.Status.Phase = corev1.ClaimPending
	}
	if c.Spec.VolumeMode == nil {
		mode := corev1.PersistentVolumeFilesystem
		c.Spec.VolumeMode = &mode
	}
	podspec.DefaultResources(c.Spec.Resources.Limits)
	podspec.DefaultResources(c.Spec.Resources.Requests)
	podspec.DefaultResources(c.Status.Capacity)
}

// pairDataSources sets dataSource and dataSourceRef to the same value if only one of them is set.
func pairDataSources(s *corev1.PersistentVolumeClaimSpec) {
	switch {
	case s.DataSource != nil && s.DataSourceRef == nil:
		s.DataSourceRef = &corev1.TypedObjectReference{
			APIGroup: s.DataSource.APIGroup, Kind: s.DataSource.Kind, Name: s.DataSource.Name,
		}
	case s.DataSourceRef != nil && s.DataSource == nil && (s.DataSourceRef.Namespace == nil || *s.DataSourceRef.Namespace == ""):
		s.DataSource = &corev1.TypedLocalObjectReference{
			APIGroup: s.DataSourceRef.APIGroup, Kind: s.DataSourceRef.Kind, Name: s.DataSourceRef.Name,
		}
	}
}

func claimWarnings(c *corev1.PersistentVolumeClaim) []string {
	list := classAnnotationWarning(c.Annotations)
	if q, ok := c.Spec.Resources.Requests[corev1.ResourceStorage]; ok && q.MilliValue()%1000 != 0 {
		list = append(list, fmt.Sprintf("spec.resources.requests[storage]: fractional byte value %q is invalid, must be an integer", q.String()))
	}
	return list
}

func validateClaim(c *corev1.PersistentVolumeClaim) field.ErrorList {
	return claimSpecErrors(&c.Spec, field.NewPath("spec"))
}

func claimSpecErrors(s *corev1.PersistentVolumeClaimSpec, p *field.Path) field.ErrorList {
	var e check.Errors
	validateModes(&e, s.AccessModes, p.Child("accessModes"), "at least 1 access mode is required")
	e.Selector(p, "selector", s.Selector)
	size, ok := s.Resources.Requests[corev1.ResourceStorage]
	at := p.Child("resources")
	if !ok {
		e.Required(at.Key(string(corev1.ResourceStorage)), "")
	} else if size.Sign() <= 0 {
		e.Invalid(at.Key(string(corev1.ResourceStorage)), size.String(), "must be greater than zero")
	}
	if s.StorageClassName != nil && *s.StorageClassName != "" {
		e.Messages(p, "storageClassName", *s.StorageClassName, check.Subdomain(*s.StorageClassName))
	}
	if n := s.VolumeAttributesClassName; n != nil && *n != "" {
		e.Messages(p, "volumeAttributesClassName", *n, check.Subdomain(*n))
	}
	validateVolumeMode(&e, s.VolumeMode, p)
	if s.DataSource != nil || s.DataSourceRef != nil {
		e.Unsupported(p.Child("dataSource"), "cloning and restoring volumes are")
	}
	return e.List
}

func validateClaimUpdate(c, old *corev1.PersistentVolumeClaim) field.ErrorList {
	e := check.Errors{List: validateClaim(c)}
	p := field.NewPath("spec")
	masked := c.DeepCopy()
	masked.Spec.VolumeName = orOld(c.Spec.VolumeName, old.Spec.VolumeName)
	if old.Spec.StorageClassName == nil && c.Spec.StorageClassName != nil {
		// A claim without a class may get the class that became the default.
		masked.Spec.StorageClassName = nil
	}
	grown := corev1.ResourceStorage
	size, was := c.Spec.Resources.Requests[grown], old.Spec.Resources.Requests[grown]
	bound := old.Status.Phase == corev1.ClaimBound
	if bound && size.Cmp(was) != 0 {
		if masked.Spec.Resources.Requests == nil {
			masked.Spec.Resources.Requests = corev1.ResourceList{}
		}
		masked.Spec.Resources.Requests[grown] = was
	}
	if bound {
		masked.Spec.VolumeAttributesClassName = old.Spec.VolumeAttributesClassName
	}
	if !check.Same(&masked.Spec, &old.Spec) {
		e.Forbidden(p, "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims\n"+
			check.Differences(old.Spec, masked.Spec))
	}
	at := p.Child("resources", "requests", "storage")
	if capacity := old.Status.Capacity[grown]; bound && size.Cmp(was) < 0 && size.Cmp(capacity) <= 0 {
		e.Forbidden(at, "field can not be less than status.capacity")
	}
	if bound && size.Cmp(was) > 0 {
		e.Unsupported(at, "growing volumes is")
	}
	return e.List
}

// orOld returns old if it is empty, and name otherwise, so that a binder may set the volume of a
// claim that has none.
func orOld(name, old string) string {
	if old == "" {
		return ""
	}
	return name
}

func validateClaimStatus(c, _ *corev1.PersistentVolumeClaim) field.ErrorList {
	var e check.Errors
	p := field.NewPath("status")
	if len(c.Spec.AccessModes) == 0 {
		e.Required(field.NewPath("spec", "accessModes"), "")
	}
	quantities := func(child string, list corev1.ResourceList) {
		for name, q := range list {
			if q.Sign() < 0 {
				e.Invalid(p.Child(child).Key(string(name)), q.Value(), "must be a valid resource quantity")
			}
		}
	}
	quantities("capacity", c.Status.Capacity)
	quantities("allocatedResources", c.Status.AllocatedResources)
	at := p.Child("allocatedResourceStatuses")
	for name, state := range c.Status.AllocatedResourceStatuses {
		if name != corev1.ResourceStorage && !podspec.Extended(name) {
			e.List = append(e.List, field.NotSupported(at, name, []corev1.ResourceName{corev1.ResourceStorage}))
		}
		if !slices.Contains(resizeStates, state) {
			// Kubernetes' error contains the resource's name here.
			e.List = append(e.List, field.NotSupported(at, name, resizeStates))
		}
	}
	return e.List
}

var resizeStates = []corev1.ClaimResourceStatus{
	corev1.PersistentVolumeClaimControllerResizeInProgress, corev1.PersistentVolumeClaimControllerResizeInfeasible,
	corev1.PersistentVolumeClaimNodeResizeInProgress, corev1.PersistentVolumeClaimNodeResizeInfeasible,
	corev1.PersistentVolumeClaimNodeResizePending,
}

func claimColumns() []metav1.TableColumnDefinition {
	spec, status := corev1.PersistentVolumeClaimSpec{}, corev1.PersistentVolumeClaimStatus{}
	return []metav1.TableColumnDefinition{
		column.Text("Status", column.Doc(status, "phase")),
		column.Text("Volume", column.Doc(spec, "volumeName")),
		column.Text("Capacity", column.Doc(status, "capacity")),
		column.Text("Access Modes", column.Doc(status, "accessModes")),
		column.Text("StorageClass", "StorageClass of the pvc"),
		column.Text("VolumeAttributesClass", "VolumeAttributesClass of the pvc"),
		column.AgeColumn(),
		column.Wide("VolumeMode", column.Doc(spec, "volumeMode")),
	}
}

func claimCells(o resource.Object) []any {
	c := o.(*corev1.PersistentVolumeClaim)
	phase := string(c.Status.Phase)
	if c.DeletionTimestamp != nil {
		phase = "Terminating"
	}
	capacity, modes := "", ""
	if c.Spec.VolumeName != "" {
		size := c.Status.Capacity[corev1.ResourceStorage]
		capacity, modes = size.String(), column.AccessModes(c.Status.AccessModes)
	}
	class := ""
	if c.Spec.StorageClassName != nil {
		class = *c.Spec.StorageClassName
	}
	if a, ok := c.Annotations[storageClassAnnotation]; ok {
		class = a
	}
	return []any{
		phase, c.Spec.VolumeName, capacity, modes, class, attributesClass(c.Spec.VolumeAttributesClassName),
		column.Age(c.CreationTimestamp), volumeMode(c.Spec.VolumeMode),
	}
}

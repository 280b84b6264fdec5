package apps

import (
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/column"
	"keelson.dev/services/apiserver/internal/kind/core"
	"keelson.dev/services/apiserver/internal/kind/podspec"
	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// StatefulSet returns the row of statefulsets.
func StatefulSet() *resource.Kind {
	k := row.Namespaced[appsv1.StatefulSet, appsv1.StatefulSetList](appsv1.SchemeGroupVersion, "statefulsets", "statefulsets")
	k.ShortNames = []string{"sts"}
	k.Categories = []string{"all"}
	k.Columns, k.Cells = statefulSetColumns(), statefulSetCells
	k.Decoded = func(o resource.Object) { typeClaims(o.(*appsv1.StatefulSet)) }
	k.Rules = resource.Typed[*appsv1.StatefulSet]{
		ValidateName: validation.NameIsDNSLabel,
		Default:      defaultStatefulSet,
		PrepareCreate: func(s *appsv1.StatefulSet) {
			s.Status = appsv1.StatefulSetStatus{}
			podspec.Drop(&s.Spec.Template.Spec)
		},
		PrepareUpdate: func(s, old *appsv1.StatefulSet) {
			s.Status = old.Status
			podspec.Drop(&s.Spec.Template.Spec)
		},
		Warnings: statefulSetWarnings,
		Validate: func(s *appsv1.StatefulSet) field.ErrorList {
			return append(validateStatefulSet(&s.Spec, true), validateTemplate(&s.Spec)...)
		},
		ValidateUpdate: validateStatefulSetUpdate,
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*appsv1.StatefulSet]{
			Default:        defaultStatefulSet,
			PrepareUpdate:  func(s, old *appsv1.StatefulSet) { s.Spec = old.Spec },
			ValidateUpdate: validateStatefulSetStatus,
		}.Rules()),
		"scale": row.Scale(resource.Scale{
			Get: func(o resource.Object) (int32, int32, string) {
				s := o.(*appsv1.StatefulSet)
				return replicas(s.Spec.Replicas), s.Status.Replicas, selector(s.Spec.Selector)
			},
			Set: func(o resource.Object, n int32) { o.(*appsv1.StatefulSet).Spec.Replicas = &n },
		}),
	}
	return k
}

func defaultStatefulSet(o *appsv1.StatefulSet) {
	s := &o.Spec
	if s.PodManagementPolicy == "" {
		s.PodManagementPolicy = appsv1.OrderedReadyPodManagement
	}
	if s.UpdateStrategy.Type == "" {
		s.UpdateStrategy.Type = appsv1.RollingUpdateStatefulSetStrategyType
		if s.UpdateStrategy.RollingUpdate == nil {
			s.UpdateStrategy.RollingUpdate = &appsv1.RollingUpdateStatefulSetStrategy{}
		}
	}
	if r := s.UpdateStrategy.RollingUpdate; r != nil && s.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		set(&r.Partition, 0)
		set(&r.MaxUnavailable, intstr.FromInt32(1))
	}
	if s.PersistentVolumeClaimRetentionPolicy == nil {
		s.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{}
	}
	keep := s.PersistentVolumeClaimRetentionPolicy
	if keep.WhenDeleted == "" {
		keep.WhenDeleted = appsv1.RetainPersistentVolumeClaimRetentionPolicyType
	}
	if keep.WhenScaled == "" {
		keep.WhenScaled = appsv1.RetainPersistentVolumeClaimRetentionPolicyType
	}
	set(&s.Replicas, 1)
	set(&s.RevisionHistoryLimit, historyLimit)
	podspec.DefaultTemplate(&s.Template)
	for i := range s.VolumeClaimTemplates {
		core.DefaultClaim(&s.VolumeClaimTemplates[i])
	}
	typeClaims(o)
}

// typeClaims sets kind and apiVersion of the claim templates. Kubernetes shows them, but its
// protobuf encoding does not contain them.
func typeClaims(s *appsv1.StatefulSet) {
	for i := range s.Spec.VolumeClaimTemplates {
		s.Spec.VolumeClaimTemplates[i].TypeMeta = metav1.TypeMeta{Kind: "PersistentVolumeClaim", APIVersion: "v1"}
	}
}

func statefulSetWarnings(s, old *appsv1.StatefulSet) []string {
	var list []string
	p := field.NewPath("spec", "volumeClaimTemplates")
	if old == nil {
		list = templateWarnings(&s.Spec.Template, nil)
	} else if !check.Same(&s.Spec, &old.Spec) {
		list = templateWarnings(&s.Spec.Template, &old.Spec.Template)
	}
	for i := range s.Spec.VolumeClaimTemplates {
		at := p.Index(i)
		if old != nil {
			at = at.Child("Spec") // Kubernetes capitalizes it here
		}
		r := &s.Spec.VolumeClaimTemplates[i].Spec.Resources
		list = append(list, core.FractionWarnings(r, at.Child("resources"))...)
	}
	if n := s.Spec.RevisionHistoryLimit; n != nil && *n < 0 {
		list = append(list, "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended")
	}
	return list
}

// validateStatefulSet validates a set, except for its template. The service name and the claim
// templates are immutable, so they are validated only when the set is created.
func validateStatefulSet(s *appsv1.StatefulSetSpec, created bool) field.ErrorList {
	var e check.Errors
	p := field.NewPath("spec")
	switch s.PodManagementPolicy {
	case appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement:
	default:
		e.Invalid(p.Child("podManagementPolicy"), s.PodManagementPolicy,
			fmt.Sprintf("must be '%s' or '%s'", appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement))
	}
	validateStatefulSetStrategy(&e, &s.UpdateStrategy, p.Child("updateStrategy"))
	if keep := s.PersistentVolumeClaimRetentionPolicy; keep != nil {
		at := p.Child("persistentVolumeClaimRetentionPolicy")
		check.Supported(&e, at, "whenDeleted", keep.WhenDeleted, retentions...)
		check.Supported(&e, at, "whenScaled", keep.WhenScaled, retentions...)
	}
	e.AtLeastZero(p, "replicas", int64(replicas(s.Replicas)))
	e.AtLeastZero(p, "minReadySeconds", int64(s.MinReadySeconds))
	if s.Ordinals != nil {
		e.AtLeastZero(p, "ordinals.start", int64(s.Ordinals.Start))
	}
	if created {
		for i := range s.VolumeClaimTemplates {
			e.Append(core.ValidateClaimSpec(&s.VolumeClaimTemplates[i].Spec, p.Child("volumeClaimTemplates").Index(i).Child("spec")))
		}
		if s.ServiceName != "" {
			e.Messages(p, "serviceName", s.ServiceName, check.Label(s.ServiceName))
		}
	}
	if s.Selector == nil {
		e.Required(p.Child("selector"), "")
	} else {
		e.Selector(p, "selector", s.Selector)
		if len(s.Selector.MatchLabels)+len(s.Selector.MatchExpressions) == 0 {
			e.Invalid(p.Child("selector"), s.Selector, "empty selector is invalid for statefulset")
		}
	}
	if _, err := metav1.LabelSelectorAsSelector(s.Selector); err != nil {
		e.Invalid(p.Child("selector"), s.Selector, "")
	}
	return e.List
}

var retentions = []appsv1.PersistentVolumeClaimRetentionPolicyType{
	appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType,
}

func validateStatefulSetStrategy(e *check.Errors, s *appsv1.StatefulSetUpdateStrategy, p *field.Path) {
	switch s.Type {
	case appsv1.OnDeleteStatefulSetStrategyType:
		if s.RollingUpdate != nil {
			e.Invalid(p.Child("rollingUpdate"), s.RollingUpdate,
				fmt.Sprintf("only allowed for updateStrategy '%s'", appsv1.RollingUpdateStatefulSetStrategyType))
		}
	case appsv1.RollingUpdateStatefulSetStrategyType:
		if s.RollingUpdate == nil {
			return
		}
		at := p.Child("rollingUpdate")
		if n := s.RollingUpdate.Partition; n != nil {
			e.AtLeastZero(at, "partition", int64(*n))
		}
		if most := s.RollingUpdate.MaxUnavailable; most != nil {
			atMostAll(e, at, "maxUnavailable", most)
			if zero(most) {
				e.Invalid(at.Child("maxUnavailable"), most, "cannot be 0")
			}
		}
	default:
		e.Invalid(p, s, fmt.Sprintf("must be '%s' or '%s'",
			appsv1.RollingUpdateStatefulSetStrategyType, appsv1.OnDeleteStatefulSetStrategyType))
	}
}

// validateTemplate validates the template as the controller completes it for a pod: with the
// volumes of the claim templates, and without hostname and subdomain, which the controller sets.
func validateTemplate(s *appsv1.StatefulSetSpec) field.ErrorList {
	if _, err := metav1.LabelSelectorAsSelector(s.Selector); err != nil {
		return nil
	}
	t := s.Template
	t.Spec.Subdomain, t.Spec.Hostname = "", ""
	if len(s.VolumeClaimTemplates) > 0 {
		t.Spec.Volumes = claimVolumes(s)
	}
	return podspec.ValidateLongRunning(&t, s.Selector, field.NewPath("spec", "template"), "StatefulSet")
}

// claimVolumes returns the volumes of a pod: one per claim template, and the template's volumes
// that no claim template replaces.
func claimVolumes(s *appsv1.StatefulSetSpec) []corev1.Volume {
	volumes := make([]corev1.Volume, 0, len(s.VolumeClaimTemplates)+len(s.Template.Spec.Volumes))
	named := func(name string) bool {
		return slices.ContainsFunc(volumes, func(v corev1.Volume) bool { return v.Name == name })
	}
	for i := range s.VolumeClaimTemplates {
		if name := s.VolumeClaimTemplates[i].Name; !named(name) {
			volumes = append(volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
				PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
			}})
		}
	}
	claims := len(volumes)
	for _, v := range s.Template.Spec.Volumes {
		if !slices.ContainsFunc(volumes[:claims], func(c corev1.Volume) bool { return c.Name == v.Name }) {
			volumes = append(volumes, v)
		}
	}
	return volumes
}

func validateStatefulSetUpdate(s, old *appsv1.StatefulSet) field.ErrorList {
	e := check.Errors{List: validateStatefulSet(&s.Spec, false)}
	p := field.NewPath("spec")
	// If the stored set is already invalid, for instance because validation became stricter, an
	// invalid template does not prevent updates.
	if wrong := validateTemplate(&s.Spec); len(wrong) > 0 && len(validateStatefulSet(&old.Spec, false))+len(validateTemplate(&old.Spec)) == 0 {
		e.Append(wrong)
	}
	if !check.Same(s.Spec.Selector, old.Spec.Selector) {
		e.Invalid(p.Child("selector"), s.Spec.Selector, check.Immutable)
	}
	if !slices.EqualFunc(s.Spec.VolumeClaimTemplates, old.Spec.VolumeClaimTemplates, func(a, b corev1.PersistentVolumeClaim) bool {
		return check.Same(&a, &b)
	}) {
		e.Invalid(p.Child("volumeClaimTemplates"), s.Spec.VolumeClaimTemplates, check.Immutable)
	}
	if s.Spec.ServiceName != old.Spec.ServiceName {
		e.Invalid(p.Child("serviceName"), s.Spec.ServiceName, check.Immutable)
	}
	if s.Spec.PodManagementPolicy != old.Spec.PodManagementPolicy {
		e.Invalid(p.Child("podManagementPolicy"), s.Spec.PodManagementPolicy, check.Immutable)
	}
	return e.List
}

func validateStatefulSetStatus(o, old *appsv1.StatefulSet) field.ErrorList {
	var e check.Errors
	s, p := &o.Status, field.NewPath("status")
	e.AtLeastZero(p, "replicas", int64(s.Replicas))
	e.AtLeastZero(p, "readyReplicas", int64(s.ReadyReplicas))
	e.AtLeastZero(p, "currentReplicas", int64(s.CurrentReplicas))
	e.AtLeastZero(p, "updatedReplicas", int64(s.UpdatedReplicas))
	e.AtLeastZero(p, "availableReplicas", int64(s.AvailableReplicas))
	e.AtLeastZero(p, "observedGeneration", s.ObservedGeneration)
	const more = "cannot be greater than status.replicas"
	notMore(&e, p, "readyReplicas", s.ReadyReplicas, s.Replicas, more)
	notMore(&e, p, "currentReplicas", s.CurrentReplicas, s.Replicas, more)
	notMore(&e, p, "updatedReplicas", s.UpdatedReplicas, s.Replicas, more)
	notMore(&e, p, "availableReplicas", s.AvailableReplicas, s.Replicas, more)
	notMore(&e, p, "availableReplicas", s.AvailableReplicas, s.ReadyReplicas, "cannot be greater than status.readyReplicas")
	validateCollisions(&e, s.CollisionCount, old.Status.CollisionCount, p)
	return e.List
}

func statefulSetColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		column.Text("Ready", "Number of the pod with ready state"),
		column.AgeColumn(),
		column.Wide("Containers", "Names of each container in the template."),
		column.Wide("Images", "Images referenced by each container in the template."),
	}
}

func statefulSetCells(o resource.Object) []any {
	s := o.(*appsv1.StatefulSet)
	names, images := column.Containers(s.Spec.Template.Spec.Containers)
	return []any{
		fmt.Sprintf("%d/%d", s.Status.ReadyReplicas, replicas(s.Spec.Replicas)), column.Age(s.CreationTimestamp), names, images,
	}
}

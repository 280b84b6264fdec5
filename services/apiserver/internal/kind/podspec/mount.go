package podspec

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

func (v *validator) validateMounts(c *corev1.Container, p *field.Path) {
	if len(c.VolumeMounts) == 0 {
		return
	}
	p = p.Child("volumeMounts")
	var paths check.Seen
	for i := range c.VolumeMounts {
		m, at := &c.VolumeMounts[i], p.Index(i)
		if m.Name == "" {
			v.Required(at.Child("name"), "")
		}
		if v.volumes[m.Name] == nil {
			v.List = append(v.List, field.NotFound(at.Child("name"), m.Name))
		}
		if m.MountPath == "" {
			v.Required(at.Child("mountPath"), "")
		}
		if paths.Add(m.MountPath) {
			v.Invalid(at.Child("mountPath"), m.MountPath, "must be unique")
		}
		if m.SubPath != "" {
			v.descending(m.SubPath, p, "subPath")
		}
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				v.Invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive")
			}
			v.descending(m.SubPathExpr, p, "subPathExpr")
		}
		v.validatePropagation(m, c, p)
		v.validateRecursive(m, p)
	}
}

func (v *validator) validatePropagation(m *corev1.VolumeMount, c *corev1.Container, p *field.Path) {
	if m.MountPropagation == nil {
		return
	}
	check.Supported(&v.Errors, p, "mountPropagation", *m.MountPropagation,
		corev1.MountPropagationBidirectional, corev1.MountPropagationHostToContainer, corev1.MountPropagationNone)
	if *m.MountPropagation == corev1.MountPropagationBidirectional {
		s := c.SecurityContext
		if s == nil || s.Privileged == nil || !*s.Privileged {
			v.Forbidden(p.Child("mountPropagation"), "Bidirectional mount propagation is available only to privileged containers")
		}
	}
}

func (v *validator) validateRecursive(m *corev1.VolumeMount, p *field.Path) {
	if m.RecursiveReadOnly == nil {
		return
	}
	switch *m.RecursiveReadOnly {
	case corev1.RecursiveReadOnlyDisabled:
	case corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible:
		if !m.ReadOnly {
			v.Forbidden(p.Child("recursiveReadOnly"), "may only be specified when readOnly is true")
		}
		if m.MountPropagation != nil && *m.MountPropagation != corev1.MountPropagationNone {
			v.Forbidden(p.Child("recursiveReadOnly"), "may only be specified when mountPropagation is None or not specified")
		}
	default:
		check.Supported(&v.Errors, p, "recursiveReadOnly", *m.RecursiveReadOnly,
			corev1.RecursiveReadOnlyDisabled, corev1.RecursiveReadOnlyEnabled, corev1.RecursiveReadOnlyIfPossible)
	}
}

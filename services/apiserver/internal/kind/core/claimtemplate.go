package core

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The rules of claims that kinds with templates of claims use.

// DefaultClaim sets the defaults of a claim.
func DefaultClaim(c *corev1.PersistentVolumeClaim) { defaultClaim(c) }

// ValidateClaimSpec validates the spec of a claim whose defaults are set.
func ValidateClaimSpec(s *corev1.PersistentVolumeClaimSpec, p *field.Path) field.ErrorList {
	return claimSpecErrors(s, p)
}

// FractionWarnings returns the warnings about sizes that are not whole numbers of bytes. p is the
// path of the claim's resources.
func FractionWarnings(r *corev1.VolumeResourceRequirements, p *field.Path) []string {
	var list []string
	for _, l := range []struct {
		name string
		list corev1.ResourceList
	}{{"requests", r.Requests}, {"limits", r.Limits}} {
		if q, ok := l.list[corev1.ResourceStorage]; ok && q.MilliValue()%1000 != 0 {
			list = append(list, fmt.Sprintf("%s: fractional byte value %q is invalid, must be an integer",
				p.Child(l.name).Key(string(corev1.ResourceStorage)), q.String()))
		}
	}
	return list
}

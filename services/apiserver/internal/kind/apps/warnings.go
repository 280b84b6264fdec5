package apps

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
	"keelson.dev/services/apiserver/internal/kind/podspec"
)

// warnings returns warnings for an object that creates pods with its name and template. The
// template is only checked if it is new or has changed.
func warnings(name string, created bool, t, old *corev1.PodTemplateSpec) []string {
	var list []string
	if created {
		if m := check.Label(name); m != nil {
			list = append(list, fmt.Sprintf("metadata.name: this is used in Pod names and hostnames, "+
				"which can result in surprising behavior; a DNS label is recommended: %v", m))
		}
	}
	return append(list, templateWarnings(t, old)...)
}

// templateWarnings returns the warnings about a template that is new or has changed.
func templateWarnings(t, old *corev1.PodTemplateSpec) []string {
	if old != nil && check.Same(t, old) {
		return nil
	}
	return podspec.Warnings(&t.Spec, t.Annotations, field.NewPath("spec", "template"))
}

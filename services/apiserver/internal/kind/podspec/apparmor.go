package podspec

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// SetAppArmor copies the AppArmor profiles in a new pod's annotations to the fields of containers
// that have none, unless the pod's own profile is the same.
func SetAppArmor(p *corev1.Pod) {
	eachAnnotated(p, func(_ string, c *corev1.Container, profile *corev1.AppArmorProfile) {
		if profile == nil || sameAsPod(p, profile) {
			return
		}
		if c.SecurityContext == nil {
			c.SecurityContext = &corev1.SecurityContext{}
		}
		c.SecurityContext.AppArmorProfile = profile
	})
}

// AppArmorNotices returns warnings for a new pod's annotations that SetAppArmor copies or that name no
// valid profile.
func AppArmorNotices(p *corev1.Pod) []string {
	var out []string
	eachAnnotated(p, func(key string, _ *corev1.Container, profile *corev1.AppArmorProfile) {
		if profile == nil || !sameAsPod(p, profile) {
			out = append(out, field.NewPath("metadata", "annotations").Key(key).String()+`: deprecated since v1.30; use the "appArmorProfile" field instead`)
		}
	})
	return out
}

// eachAnnotated calls f for each container with an annotation and without a field for its AppArmor
// profile. profile is nil if the annotation names no valid one.
func eachAnnotated(p *corev1.Pod, f func(key string, c *corev1.Container, profile *corev1.AppArmorProfile)) {
	if len(p.Annotations) == 0 || p.Spec.OS != nil && p.Spec.OS.Name == corev1.Windows {
		return
	}
	eachContainer(&p.Spec, nil, func(c *corev1.Container, _ *field.Path) {
		value, ok := p.Annotations[appArmorContainer+c.Name]
		if ok && (c.SecurityContext == nil || c.SecurityContext.AppArmorProfile == nil) {
			f(appArmorContainer+c.Name, c, annotatedProfile(value))
		}
	})
}

func annotatedProfile(value string) *corev1.AppArmorProfile {
	out := &corev1.AppArmorProfile{}
	name, local := strings.CutPrefix(value, corev1.DeprecatedAppArmorBetaProfileNamePrefix)
	switch {
	case value == corev1.DeprecatedAppArmorBetaProfileNameUnconfined:
		out.Type = corev1.AppArmorProfileTypeUnconfined
	case value == corev1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		out.Type = corev1.AppArmorProfileTypeRuntimeDefault
	case local:
		out.Type, out.LocalhostProfile = corev1.AppArmorProfileTypeLocalhost, &name
	}
	v := validator{}
	if v.validateAppArmor(out, field.NewPath("profile")); len(v.List) > 0 {
		return nil
	}
	return out
}

func sameAsPod(p *corev1.Pod, profile *corev1.AppArmorProfile) bool {
	c := p.Spec.SecurityContext
	return c != nil && equality.Semantic.DeepEqual(c.AppArmorProfile, profile)
}

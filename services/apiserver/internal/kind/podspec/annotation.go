package podspec

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

// Annotations that describe a pod or a template, from times before there were fields for it.
const (
	tolerationsAnnotation = "scheduler.alpha.kubernetes.io/tolerations"
	seccompPod            = corev1.SeccompPodAnnotationKey
	seccompContainer      = corev1.SeccompContainerAnnotationKeyPrefix
	appArmorContainer     = corev1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix
)

// validateAnnotations checks the annotations of a pod or of a template that describe its spec. Their
// path is p and names below it.
func validateAnnotations(e *check.Errors, annotations map[string]string, s *corev1.PodSpec, p *field.Path, names ...string) {
	if !anyAbout(annotations) {
		return
	}
	for _, name := range names {
		p = child(p, name)
	}
	if value, ok := annotations[corev1.MirrorPodAnnotationKey]; ok && s.NodeName == "" {
		e.Invalid(p.Key(corev1.MirrorPodAnnotationKey), value, "must set spec.nodeName if mirror pod annotation is set")
	}
	if text := annotations[tolerationsAnnotation]; text != "" {
		validateTolerationsText(e, text, p)
	}
	if cost, ok := annotations[corev1.PodDeletionCost]; ok && !deletionCost(cost) {
		e.Invalid(p.Key(corev1.PodDeletionCost), cost, "must be a 32bit integer")
	}
	for _, key := range profileKeys(annotations) {
		value := annotations[key]
		switch {
		case key == seccompPod, strings.HasPrefix(key, seccompContainer):
			validateSeccompName(e, value, p, key)
		case strings.HasPrefix(key, appArmorContainer):
			validateAppArmorAnnotation(e, key, value, s, p.Key(key))
		}
	}
}

// anyAbout reports whether an annotation describes the spec.
func anyAbout(annotations map[string]string) bool {
	for key := range annotations {
		switch key {
		case corev1.MirrorPodAnnotationKey, tolerationsAnnotation, corev1.PodDeletionCost:
			return true
		}
		if aboutProfile(key) {
			return true
		}
	}
	return false
}

// aboutProfile reports whether an annotation names a seccomp or AppArmor profile.
func aboutProfile(key string) bool {
	return key == seccompPod || strings.HasPrefix(key, seccompContainer) || strings.HasPrefix(key, appArmorContainer)
}

// profileKeys returns the sorted keys of the annotations that name profiles.
func profileKeys(annotations map[string]string) []string {
	var keys []string
	for key := range annotations {
		if aboutProfile(key) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func validateTolerationsText(e *check.Errors, text string, p *field.Path) {
	var list []corev1.Toleration
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		e.Invalid(p, tolerationsAnnotation, err.Error())
		return
	}
	for i := range list {
		ValidateToleration(e, &list[i], p.Child(tolerationsAnnotation).Index(i))
	}
}

// deletionCost reports whether a text is a 32-bit integer without a plus sign or leading zeros.
func deletionCost(text string) bool {
	_, err := strconv.ParseInt(text, 10, 32)
	return err == nil && (text == "0" || text[0] == '-' || text[0] >= '1' && text[0] <= '9')
}

// validateSeccompName checks the name of a seccomp profile in an annotation.
func validateSeccompName(e *check.Errors, name string, p *field.Path, key string) {
	switch name {
	case corev1.SeccompProfileRuntimeDefault, corev1.DeprecatedSeccompProfileDockerDefault, corev1.SeccompProfileNameUnconfined:
		return
	}
	path, local := strings.CutPrefix(name, corev1.SeccompLocalhostProfileNamePrefix)
	if !local {
		e.Invalid(p.Child(key), name, "must be a valid seccomp profile")
		return
	}
	v := validator{}
	v.descending(path, p, key)
	e.Append(v.List)
}

func validateAppArmorAnnotation(e *check.Errors, key, value string, s *corev1.PodSpec, p *field.Path) {
	if name := strings.TrimPrefix(key, appArmorContainer); !hasContainer(s, name) {
		e.Invalid(p, name, "container not found")
	}
	switch {
	case value == "", value == corev1.DeprecatedAppArmorBetaProfileRuntimeDefault, value == corev1.DeprecatedAppArmorBetaProfileNameUnconfined,
		strings.HasPrefix(value, corev1.DeprecatedAppArmorBetaProfileNamePrefix):
	default:
		e.Invalid(p, value, fmt.Sprintf("invalid AppArmor profile name: %q", value))
	}
}

func hasContainer(s *corev1.PodSpec, name string) bool {
	found := false
	eachContainer(s, nil, func(c *corev1.Container, _ *field.Path) { found = found || c.Name == name })
	return found
}

// eachContainer calls f for each container of any kind; p is the path of the spec.
func eachContainer(s *corev1.PodSpec, p *field.Path, f func(c *corev1.Container, p *field.Path)) {
	for i := range s.InitContainers {
		f(&s.InitContainers[i], p.Child("initContainers").Index(i))
	}
	for i := range s.Containers {
		f(&s.Containers[i], p.Child("containers").Index(i))
	}
	for i := range s.EphemeralContainers {
		f(plain(&s.EphemeralContainers[i]), p.Child("ephemeralContainers").Index(i))
	}
}

// annotationsMatch checks that annotations about profiles say the same as the fields of the spec
// below p, where there are both.
func annotationsMatch(e *check.Errors, annotations map[string]string, s *corev1.PodSpec, p *field.Path) {
	if !anyAbout(annotations) {
		return
	}
	p = child(p, "spec")
	var appArmor *corev1.AppArmorProfile
	if c := s.SecurityContext; c != nil {
		appArmor = c.AppArmorProfile
		if value, ok := annotations[seccompPod]; ok && c.SeccompProfile != nil {
			seccompMatches(e, value, c.SeccompProfile, p.Child("securityContext", "seccompProfile"))
		}
	}
	eachContainer(s, p, func(c *corev1.Container, p *field.Path) {
		profile := appArmor
		if c.SecurityContext != nil {
			if c.SecurityContext.AppArmorProfile != nil {
				profile = c.SecurityContext.AppArmorProfile
			}
			if value, ok := annotations[seccompContainer+c.Name]; ok && c.SecurityContext.SeccompProfile != nil {
				seccompMatches(e, value, c.SecurityContext.SeccompProfile, p.Child("securityContext", "seccompProfile"))
			}
		}
		if value, ok := annotations[appArmorContainer+c.Name]; ok && profile != nil {
			appArmorMatches(e, value, profile, p.Child("securityContext", "appArmorProfile"))
		}
	})
}

func seccompMatches(e *check.Errors, value string, s *corev1.SeccompProfile, p *field.Path) {
	same := true
	switch s.Type {
	case corev1.SeccompProfileTypeUnconfined:
		same = value == corev1.SeccompProfileNameUnconfined
	case corev1.SeccompProfileTypeRuntimeDefault:
		same = value == corev1.SeccompProfileRuntimeDefault || value == corev1.DeprecatedSeccompProfileDockerDefault
	case corev1.SeccompProfileTypeLocalhost:
		localMatches(e, value, corev1.SeccompLocalhostProfileNamePrefix, s.LocalhostProfile, "seccomp", p)
	}
	if !same {
		e.Forbidden(p.Child("type"), "seccomp type in annotation and field must match")
	}
}

func appArmorMatches(e *check.Errors, value string, s *corev1.AppArmorProfile, p *field.Path) {
	same := true
	switch s.Type {
	case corev1.AppArmorProfileTypeUnconfined:
		same = value == corev1.DeprecatedAppArmorBetaProfileNameUnconfined
	case corev1.AppArmorProfileTypeRuntimeDefault:
		same = value == corev1.DeprecatedAppArmorBetaProfileRuntimeDefault
	case corev1.AppArmorProfileTypeLocalhost:
		localMatches(e, value, corev1.DeprecatedAppArmorBetaProfileNamePrefix, s.LocalhostProfile, "apparmor", p)
	}
	if !same {
		e.Forbidden(p.Child("type"), "apparmor type in annotation and field must match")
	}
}

// localMatches compares the name of a profile of the node in an annotation with that in a field.
func localMatches(e *check.Errors, value, prefix string, profile *string, what string, p *field.Path) {
	name, local := strings.CutPrefix(value, prefix)
	switch {
	case !local:
		e.Forbidden(p.Child("type"), what+" type in annotation and field must match")
	case profile == nil || *profile != name:
		e.Forbidden(p.Child("localhostProfile"), what+" profile in annotation and field must match")
	}
}

// ValidateAnnotationUpdate checks a change of a pod's annotations.
func ValidateAnnotationUpdate(p, old *corev1.Pod) field.ErrorList {
	if !anyAbout(p.Annotations) && !anyAbout(old.Annotations) || maps.Equal(p.Annotations, old.Annotations) {
		return nil
	}
	var e check.Errors
	path := field.NewPath("metadata", "annotations")
	for _, key := range slices.Sorted(maps.Keys(old.Annotations)) {
		value, ok := p.Annotations[key]
		switch {
		case ok && value == old.Annotations[key]:
		case strings.HasPrefix(key, appArmorContainer):
			e.Forbidden(path.Key(key), "may not remove or update AppArmor annotations")
		case key == corev1.MirrorPodAnnotationKey:
			e.Forbidden(path.Key(key), "may not remove or update mirror pod annotation")
		}
	}
	for _, key := range slices.Sorted(maps.Keys(p.Annotations)) {
		_, ok := old.Annotations[key]
		switch {
		case ok:
		case strings.HasPrefix(key, appArmorContainer):
			e.Forbidden(path.Key(key), "may not add AppArmor annotations")
		case key == corev1.MirrorPodAnnotationKey:
			e.Forbidden(path.Key(key), "may not add mirror pod annotation")
		}
	}
	annotations := p.Annotations
	if was, ok := old.Annotations[corev1.PodDeletionCost]; ok && !deletionCost(was) {
		annotations = maps.Clone(annotations)
		delete(annotations, corev1.PodDeletionCost) // it was stored before it was checked
	}
	validateAnnotations(&e, annotations, &p.Spec, path)
	return e.List
}

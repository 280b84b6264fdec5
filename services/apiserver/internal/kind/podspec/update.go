package podspec

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	validationutil "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/kind/check"
)

// ValidateUpdate checks a change of a pod. The spec is immutable except for container images, an
// earlier deadline, additional tolerations, removed scheduling gates (and, while there are any,
// stricter placement), and a negative grace period that is replaced by 1.
func ValidateUpdate(pod, old *corev1.Pod) field.ErrorList {
	var e check.Errors
	same := check.Same(&pod.Spec, &old.Spec)
	if !same || !maps.Equal(pod.Annotations, old.Annotations) && anyAbout(pod.Annotations) {
		e.Append(validatePod(pod)) // what the pod would be, and below what changes
	}
	e.Append(ValidateAnnotationUpdate(pod, old))
	if !same {
		e.Append(updateSpec(&pod.Spec, &old.Spec, field.NewPath("spec")))
	}
	return unique(e.List)
}

// unique returns the errors without repetitions.
func unique(list field.ErrorList) field.ErrorList {
	var out field.ErrorList
	for _, err := range list {
		if !slices.ContainsFunc(out, func(other *field.Error) bool { return other.Field == err.Field && other.Error() == err.Error() }) {
			out = append(out, err)
		}
	}
	return out
}

func updateSpec(s, old *corev1.PodSpec, p *field.Path) field.ErrorList {
	if check.Same(s, old) {
		return nil
	}
	var e check.Errors
	if updateContainers(&e, s.Containers, old.Containers, p.Child("containers")); len(e.List) > 0 {
		return e.List
	}
	if updateContainers(&e, s.InitContainers, old.InitContainers, p.Child("initContainers")); len(e.List) > 0 {
		return e.List
	}
	updateDeadline(&e, s, old, p)
	updateTolerations(&e, s, old, p)
	updateGates(&e, s, old, p)
	if len(e.List) > 0 {
		return e.List
	}
	// Everything that may differ is reset, so any remaining difference is an error.
	masked := s.DeepCopy()
	for i := range masked.Containers {
		masked.Containers[i].Image = old.Containers[i].Image
	}
	for i := range masked.InitContainers {
		masked.InitContainers[i].Image = old.InitContainers[i].Image
	}
	masked.ActiveDeadlineSeconds = old.ActiveDeadlineSeconds
	masked.Tolerations = old.Tolerations
	masked.SchedulingGates = old.SchedulingGates
	if g, was := masked.TerminationGracePeriodSeconds, old.TerminationGracePeriodSeconds; g != nil && was != nil && *was < 0 && *g == 1 {
		masked.TerminationGracePeriodSeconds = was
	}
	if len(old.SchedulingGates) > 0 {
		maskPlacement(&e, masked, old, p)
	}
	if !check.Same(masked, old) {
		e.Forbidden(p, "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"+
			"`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"+
			"`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n"+
			check.Differences(old, masked))
	}
	return e.List
}

func updateContainers(e *check.Errors, list, old []corev1.Container, p *field.Path) {
	if len(list) != len(old) {
		e.Forbidden(p, "pod updates may not add or remove containers")
		return
	}
	for i := range list {
		if list[i].Image == "" {
			e.Required(p.Index(i).Child("image"), "")
		} else if strings.TrimSpace(list[i].Image) != list[i].Image {
			e.Invalid(p.Index(i).Child("image"), list[i].Image, "must not have leading or trailing whitespace")
		}
	}
}

func updateDeadline(e *check.Errors, s, old *corev1.PodSpec, p *field.Path) {
	p = p.Child("activeDeadlineSeconds")
	d, was := s.ActiveDeadlineSeconds, old.ActiveDeadlineSeconds
	switch {
	case d != nil && (*d < 1 || *d > math.MaxInt32):
		e.Invalid(p, *d, validationutil.InclusiveRangeError(1, math.MaxInt32))
		if *d != 0 {
			e.Invalid(p, *d, validationutil.InclusiveRangeError(0, math.MaxInt32))
		}
	case d != nil && was != nil && *d > *was:
		e.Invalid(p, *d, "must be less than or equal to previous value")
	case d == nil && was != nil:
		e.Invalid(p, d, "must not update from a positive integer to nil value")
	}
}

func updateTolerations(e *check.Errors, s, old *corev1.PodSpec, p *field.Path) {
	if equality.Semantic.DeepEqual(s.Tolerations, old.Tolerations) {
		return
	}
	v := validator{spec: s}
	for i := range s.Tolerations {
		ValidateToleration(&v.Errors, &s.Tolerations[i], p.Child("tolerations").Index(i))
	}
	e.Append(v.List)
	for i := range old.Tolerations {
		found := false
		for j := range s.Tolerations {
			was, now := old.Tolerations[i], s.Tolerations[j]
			// tolerationSeconds may change.
			was.TolerationSeconds, now.TolerationSeconds = nil, nil
			found = found || was == now
		}
		if !found {
			e.Forbidden(p.Child("tolerations"), "existing toleration can not be modified except its tolerationSeconds")
			return
		}
	}
}

func updateGates(e *check.Errors, s, old *corev1.PodSpec, p *field.Path) {
	var were check.Seen
	for _, g := range old.SchedulingGates {
		were.Add(g.Name)
	}
	for i, g := range s.SchedulingGates {
		if !were.Has(g.Name) {
			e.Forbidden(p.Child("schedulingGates").Index(i).Child("name"),
				fmt.Sprintf("only deletion is allowed, but found new scheduling gate '%s'", g.Name))
		}
	}
}

// maskPlacement allows the node selector and required node affinity of a gated pod to become
// stricter, and its preferences to change.
func maskPlacement(e *check.Errors, s, old *corev1.PodSpec, p *field.Path) {
	for key, value := range old.NodeSelector {
		if now, ok := s.NodeSelector[key]; !ok || now != value {
			e.Invalid(p.Child("nodeSelector"), s.NodeSelector, "only additions to spec.nodeSelector are allowed (no mutations or deletions)")
			break
		}
	}
	s.NodeSelector = old.NodeSelector
	narrower(e, required(s), required(old), p.Child("affinity", "nodeAffinity",
		"requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"))
	var was *corev1.NodeAffinity
	if old.Affinity != nil {
		was = old.Affinity.NodeAffinity
	}
	switch {
	case s.Affinity != nil:
		s.Affinity.NodeAffinity = was
		if old.Affinity == nil && *s.Affinity == (corev1.Affinity{}) {
			s.Affinity = nil
		}
	case was != nil:
		s.Affinity = &corev1.Affinity{NodeAffinity: was}
	}
}

func required(s *corev1.PodSpec) []corev1.NodeSelectorTerm {
	if s.Affinity == nil || s.Affinity.NodeAffinity == nil ||
		s.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return nil
	}
	return s.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms
}

// narrower checks that each old term still exists with nothing removed. If there were no terms,
// any may be added.
func narrower(e *check.Errors, terms, old []corev1.NodeSelectorTerm, p *field.Path) {
	if len(old) == 0 {
		return
	}
	if len(terms) != len(old) {
		e.Invalid(p, terms, "no additions/deletions to non-empty NodeSelectorTerms list are allowed")
		return
	}
	for i := range old {
		empty := len(old[i].MatchExpressions)+len(old[i].MatchFields) == 0
		grown := len(terms[i].MatchExpressions)+len(terms[i].MatchFields) > 0
		if empty && grown || !startsWith(terms[i].MatchExpressions, old[i].MatchExpressions) ||
			!startsWith(terms[i].MatchFields, old[i].MatchFields) {
			e.Invalid(p.Index(i), terms[i], "only additions are allowed (no mutations or deletions)")
		}
	}
}

func startsWith(list, head []corev1.NodeSelectorRequirement) bool {
	return len(list) >= len(head) && equality.Semantic.DeepEqual(list[:len(head)], head)
}

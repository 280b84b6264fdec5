package namespace

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// setConditions writes what is left into the conditions, and reports whether one
// changed.
func setConditions(s *corev1.NamespaceStatus, left *remains, now metav1.Time) bool {
	changed := false
	for _, c := range conditions(left) {
		changed = setCondition(s, c, now) || changed
	}
	return changed
}

func conditions(left *remains) []corev1.NamespaceCondition {
	out := []corev1.NamespaceCondition{
		{Type: corev1.NamespaceDeletionDiscoveryFailure, Status: corev1.ConditionFalse, Reason: "ResourcesDiscovered", Message: "All resources successfully discovered"},
		{Type: corev1.NamespaceDeletionGVParsingFailure, Status: corev1.ConditionFalse, Reason: "ParsedGroupVersions", Message: "All legacy kube types successfully parsed"},
		{Type: corev1.NamespaceDeletionContentFailure, Status: corev1.ConditionFalse, Reason: "ContentDeleted", Message: "All content successfully deleted, may be waiting on finalization"},
		{Type: corev1.NamespaceContentRemaining, Status: corev1.ConditionFalse, Reason: "ContentRemoved", Message: "All content successfully removed"},
		{Type: corev1.NamespaceFinalizersRemaining, Status: corev1.ConditionFalse, Reason: "ContentHasNoFinalizers", Message: "All content-preserving finalizers finished"},
	}
	if left.failure != nil {
		out[2].Status, out[2].Reason = corev1.ConditionTrue, "ContentDeletionFailed"
		out[2].Message = "Failed to delete all resource types: " + strings.ReplaceAll(left.failure.Error(), "\n", ", ")
	}
	if len(left.objects) > 0 {
		out[3].Status, out[3].Reason = corev1.ConditionTrue, "SomeResourcesRemain"
		out[3].Message = "Some resources are remaining: " + counts(left.objects, "%s has %d resource instances")
	}
	if len(left.finalizers) > 0 {
		out[4].Status, out[4].Reason = corev1.ConditionTrue, "SomeFinalizersRemain"
		out[4].Message = "Some content in the namespace has finalizers remaining: " + counts(left.finalizers, "%s in %d resource instances")
	}
	return out
}

func counts(m map[string]int, format string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf(format, k, m[k]))
	}
	return strings.Join(parts, ", ")
}

func setCondition(s *corev1.NamespaceStatus, c corev1.NamespaceCondition, now metav1.Time) bool {
	for i := range s.Conditions {
		old := &s.Conditions[i]
		if old.Type != c.Type {
			continue
		}
		if old.Status == c.Status && old.Reason == c.Reason && old.Message == c.Message {
			return false
		}
		c.LastTransitionTime = now
		if old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		*old = c
		return true
	}
	c.LastTransitionTime = now
	s.Conditions = append(s.Conditions, c)
	return true
}

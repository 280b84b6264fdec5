package pipeline

import (
	"strings"

	"k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/resource"
)

// The checks below accept nearly all metadata without regular expressions. They never reject
// anything: what they do not accept is validated by apimachinery, which returns the errors.

// plainNew reports whether the metadata of a new object, apart from its name, is certainly valid.
func plainNew(k *resource.Kind, obj metav1.Object) bool {
	if k.Namespaced != (obj.GetNamespace() != "") || k.Namespaced && !plainLabel(obj.GetNamespace()) {
		return false
	}
	return obj.GetGeneration() >= 0 && len(obj.GetFinalizers()) == 0 && plainParts(obj)
}

// plainUpdate reports whether the metadata of an update is certainly valid.
func plainUpdate(obj, old metav1.Object) bool {
	created, was := obj.GetCreationTimestamp(), old.GetCreationTimestamp()
	return old.GetDeletionTimestamp() == nil && obj.GetDeletionTimestamp() == nil &&
		old.GetDeletionGracePeriodSeconds() == nil && obj.GetDeletionGracePeriodSeconds() == nil &&
		obj.GetResourceVersion() != "" && obj.GetGeneration() >= old.GetGeneration() && old.GetGeneration() >= 0 &&
		obj.GetName() == old.GetName() && obj.GetNamespace() == old.GetNamespace() && obj.GetUID() == old.GetUID() &&
		created.Time.Equal(was.Time) && plainParts(obj)
}

func plainParts(obj metav1.Object) bool {
	for k, v := range obj.GetLabels() {
		if !plainQualified(k) || v != "" && !plainName(v) {
			return false
		}
	}
	size := 0
	for k, v := range obj.GetAnnotations() {
		if size += len(k) + len(v); !plainQualified(k) {
			return false
		}
	}
	return size <= validation.TotalAnnotationSizeLimitB && plainOwners(obj.GetOwnerReferences()) && plainManaged(obj.GetManagedFields())
}

func plainOwners(refs []metav1.OwnerReference) bool {
	controllers := 0
	for i := range refs {
		r := &refs[i]
		_, version, grouped := strings.Cut(r.APIVersion, "/")
		if r.APIVersion == "" || grouped && (version == "" || strings.Contains(version, "/")) ||
			r.Kind == "" || r.Kind == "Event" || r.Name == "" || r.UID == "" {
			return false
		}
		if r.Controller != nil && *r.Controller {
			controllers++
		}
	}
	return controllers <= 1
}

func plainManaged(entries []metav1.ManagedFieldsEntry) bool {
	for i := range entries {
		e := &entries[i]
		if e.Operation != metav1.ManagedFieldsOperationUpdate && e.Operation != metav1.ManagedFieldsOperationApply ||
			e.FieldsType != "FieldsV1" || len(e.Manager) > longestManager || len(e.Subresource) > 64 || !printable(e.Manager) {
			return false
		}
	}
	return true
}

func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

// plainQualified reports whether s is a qualified name: a name with an optional DNS subdomain in
// front.
func plainQualified(s string) bool {
	prefix, name, ok := strings.Cut(s, "/")
	if !ok {
		return plainName(prefix)
	}
	return plainSubdomain(prefix) && plainName(name)
}

// plainName reports whether s consists of at most 63 letters, digits, '-', '_' and '.', with a
// letter or digit at both ends.
func plainName(s string) bool {
	if len(s) == 0 || len(s) > 63 || !alphanumeric(s[0]) || !alphanumeric(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !alphanumeric(c) && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z'
}

// plainLabel reports whether s is an RFC 1123 label.
func plainLabel(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// plainSubdomain reports whether s is an RFC 1123 subdomain whose labels have at most 63 bytes.
func plainSubdomain(s string) bool {
	if len(s) > 253 {
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !plainLabel(part) {
			return false
		}
	}
	return true
}

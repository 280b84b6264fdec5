package pipeline

import (
	"fmt"
	"math/rand/v2"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"keelson.dev/services/apiserver/internal/resource"
)

const (
	// generatedSuffix and longestBase are the lengths of the parts of a generated name, which
	// is at most as long as a label (Kubernetes' names.SimpleNameGenerator).
	generatedSuffix = 5
	longestBase     = 63 - generatedSuffix
	// nameLetters are the characters of generated names: no vowels, and no digits that look like
	// letters (apimachinery's util/rand).
	nameLetters = "bcdfghjklmnpqrstvwxz2456789"
)

// generateName appends a random suffix to base.
func generateName(base string) string {
	return suffixed(base, func() int { return rand.IntN(len(nameLetters)) })
}

// suffixed appends to base a suffix of the letters that next chooses.
func suffixed(base string, next func() int) string {
	if len(base) > longestBase {
		base = base[:longestBase]
	}
	b := make([]byte, len(base), len(base)+generatedSuffix)
	copy(b, base)
	for range generatedSuffix {
		b = append(b, nameLetters[next()])
	}
	return string(b)
}

// checkPlace compares the namespace of the object with that of the request, and completes it.
func checkPlace(k *resource.Kind, t Target, obj resource.Object) error {
	if !k.Namespaced {
		if obj.GetNamespace() != "" {
			obj.SetNamespace("")
		}
		return nil
	}
	switch obj.GetNamespace() {
	case "":
		obj.SetNamespace(t.Namespace)
	case t.Namespace:
	default:
		return apierrors.NewBadRequest("the namespace of the provided object does not match the namespace sent on the request")
	}
	return nil
}

// dedupOwners removes duplicate owner references, as Kubernetes does.
func dedupOwners(obj resource.Object, warn func(string)) {
	refs := obj.GetOwnerReferences()
	if len(refs) < 2 {
		return
	}
	type owner struct{ apiVersion, kind, name, uid string }
	seen := make(map[owner]bool, len(refs))
	kept := refs[:0:0]
	for _, r := range refs {
		o := owner{r.APIVersion, r.Kind, r.Name, string(r.UID)}
		if seen[o] {
			warn(fmt.Sprintf(".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: %s", r.UID))
			continue
		}
		seen[o] = true
		kept = append(kept, r)
	}
	if len(kept) < len(refs) {
		obj.SetOwnerReferences(kept)
	}
}

// defaultName checks the names of kinds without a check of their own.
func defaultName(name string, prefix bool) []string {
	return validation.NameIsDNSSubdomain(name, prefix)
}

var metadataPath = field.NewPath("metadata")

// validateNew validates the metadata and the object of a create.
func validateNew(k *resource.Kind, r *resource.Rules, obj resource.Object) error {
	errs := validateNewMeta(k, obj)
	if r.Validate != nil {
		errs = append(errs, r.Validate(obj)...)
	}
	if len(errs) == 0 {
		for _, message := range path.ValidatePathSegmentName(obj.GetName(), false) {
			errs = append(errs, field.Invalid(metadataPath.Child("name"), obj.GetName(), message))
		}
	}
	return invalid(k, obj, unique(errs))
}

func validateNewMeta(k *resource.Kind, obj resource.Object) field.ErrorList {
	check := k.Rules.ValidateName
	if check == nil {
		check = defaultName
	}
	if name := obj.GetName(); plainNew(k, obj) && obj.GetGenerateName() == "" && plainSubdomain(name) &&
		(k.Rules.ValidateName == nil || len(check(name, false)) == 0) {
		return nil
	}
	return append(validation.ValidateObjectMetaAccessor(obj, k.Namespaced, check, metadataPath), checkFinalizers(obj)...)
}

// validateChanged validates an update.
func validateChanged(k *resource.Kind, r *resource.Rules, obj, old resource.Object) error {
	var errs field.ErrorList
	if !plainUpdate(obj, old) {
		errs = validation.ValidateObjectMetaAccessorUpdate(obj, old, metadataPath)
	}
	errs = append(errs, checkFinalizers(obj)...)
	if r.ValidateUpdate != nil {
		errs = append(errs, r.ValidateUpdate(obj, old)...)
	}
	return invalid(k, obj, unique(errs))
}

// checkFinalizers refuses finalizers without a domain, except Kubernetes' own.
func checkFinalizers(obj metav1.Object) (errs field.ErrorList) {
	for i, f := range obj.GetFinalizers() {
		if strings.Contains(f, "/") || f == string(corev1.FinalizerKubernetes) || f == metav1.FinalizerOrphanDependents || f == metav1.FinalizerDeleteDependents {
			continue
		}
		errs = append(errs, field.Invalid(metadataPath.Child("finalizers").Index(i), f, "name is neither a standard finalizer name nor is it fully qualified"))
	}
	return errs
}

// unique removes duplicate errors, which occur if a kind checks the metadata as well.
func unique(errs field.ErrorList) field.ErrorList {
	if len(errs) < 2 {
		return errs
	}
	seen := make(map[string]bool, len(errs))
	out := errs[:0:0]
	for _, e := range errs {
		if text := e.Error(); !seen[text] {
			seen[text] = true
			out = append(out, e)
		}
		if len(out) == maxErrors {
			return append(out, field.Forbidden(nil, fmt.Sprintf("too many errors, only the first %d are shown", maxErrors)))
		}
	}
	return out
}

// maxErrors bounds the errors of a response: an object can have as many as it has fields, and
// joining their texts takes quadratic time.
const maxErrors = 250

func invalid(k *resource.Kind, obj metav1.Object, errs field.ErrorList) error {
	if len(errs) == 0 {
		return nil
	}
	return apierrors.NewInvalid(k.GVK.GroupKind(), obj.GetName(), errs)
}

package pipeline

import (
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"

	"keelson.dev/services/apiserver/internal/resource"
)

// checkTarget checks the target of a verb: the subresource must serve the verb, there must be a
// namespace exactly if the kind is namespaced, and a name exactly if the verb works on one
// object. What a target names is what is authorized, so it must never differ from what the verb
// then reads or writes.
func checkTarget(verb string, k *resource.Kind, sub *resource.Subresource, t Target) error {
	if !served(verb, k, sub) {
		return errMethod(t, verb)
	}
	if !k.Namespaced && t.Namespace != "" {
		return errNotNamespaced(k)
	}
	named, everywhere := false, false
	switch verb {
	case "list":
		everywhere = true
	case "watch": // with a name, it watches one object
		named = t.Name != ""
		everywhere = !named
	case "deletecollection":
		if k.Namespaced && t.Namespace == "" {
			return errMethod(t, verb)
		}
	case "create":
		named = sub != nil // otherwise, the name is in the object
	default:
		named = true
	}
	switch {
	case named && t.Name == "":
		return apierrors.NewBadRequest("name must be provided")
	case !named && t.Name != "":
		return apierrors.NewBadRequest(fmt.Sprintf("%s of %s takes no name, but the request names %q", verb, k.Resource, t.Name))
	case k.Namespaced && t.Namespace == "" && !everywhere:
		if verb == "create" && sub == nil {
			return apierrors.NewBadRequest("an empty namespace may not be set during creation")
		}
		return apierrors.NewBadRequest("an empty namespace may not be set when a resource name is provided")
	}
	if err := checkSegment("Name", t.Name); err != nil {
		return err
	}
	return checkSegment("Namespace", t.Namespace)
}

// served reports whether the pipeline serves a verb on a kind or on one of its subresources. The
// fronts serve streams.
func served(verb string, k *resource.Kind, sub *resource.Subresource) bool {
	if sub == nil {
		return slices.Contains(k.Verbs(), verb)
	}
	return sub.Connect == "" && slices.Contains(sub.Verbs, verb)
}

func errNotNamespaced(k *resource.Kind) error {
	return apierrors.NewBadRequest(fmt.Sprintf("%s are not namespaced", k.Resource))
}

// checkSegment refuses a name that cannot be a segment of a URL path, and so of a store key.
func checkSegment(what, name string) error {
	if problems := content.IsPathSegmentName(name); len(problems) > 0 {
		return apierrors.NewBadRequest(fmt.Sprintf("%s parameter invalid: %q: %s", what, name, strings.Join(problems, ";")))
	}
	return nil
}

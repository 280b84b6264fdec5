package pipeline

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/resource"
)

// errNoResource describes what is wrong with a group, version and resource that match no row, and
// what was probably meant.
func (p *Pipeline) errNoResource(t Target) error {
	r := t.Resource
	if r.Resource == "" {
		return apierrors.NewBadRequest(`the reference names no resource: want the plural, such as "pods"`)
	}
	if group, version, ok := strings.Cut(r.Version, "/"); ok {
		return apierrors.NewBadRequest(fmt.Sprintf("version %q: want the group %q and the version %q in fields of their own", r.Version, group, version))
	}
	var versions, groups []string
	plural := ""
	for _, k := range p.cfg.Table.Kinds() {
		switch {
		case k.Resource != r.Resource:
			if k.GVK.Kind == r.Resource || k.Singular == r.Resource || slices.Contains(k.ShortNames, r.Resource) {
				plural = k.Resource
			}
		case k.GVK.Group == r.Group:
			versions = append(versions, k.GVK.Version)
		default:
			groups = append(groups, fmt.Sprintf("%q", k.GVK.Group))
		}
	}
	switch {
	case len(versions) > 0 && r.Version == "":
		return apierrors.NewBadRequest(fmt.Sprintf("the reference to %s names no version: want %s", r.Resource, strings.Join(versions, " or ")))
	case len(versions) > 0:
		return errNotServed(fmt.Sprintf("%s are not served in version %q, but in %s", r.Resource, r.Version, strings.Join(versions, " and ")))
	case len(groups) > 0:
		return errNotServed(fmt.Sprintf("%s are not in the API group %q, but in %s", r.Resource, r.Group, strings.Join(groups, " and ")))
	case plural != "":
		return errNotServed(fmt.Sprintf("there is no resource %q: want the plural, %q", r.Resource, plural))
	}
	return errNotServed(fmt.Sprintf("there is no resource %q in API group %q", r.Resource, r.Group))
}

func errNoSubresource(k *resource.Kind, t Target) error {
	if len(k.Subresources) == 0 {
		return errNotServed(fmt.Sprintf("%s have no subresources, but the request names %q", k.Resource, t.Subresource))
	}
	return errNotServed(fmt.Sprintf("%s have no subresource %q, but %s", k.Resource, t.Subresource,
		strings.Join(slices.Sorted(maps.Keys(k.Subresources)), ", ")))
}

// errNotServed returns the NotFound of a path rather than of an object: its details name no
// object.
func errNotServed(message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotFound, Reason: metav1.StatusReasonNotFound,
		Message: "the server could not find the requested resource: " + message, Details: &metav1.StatusDetails{},
	}}
}

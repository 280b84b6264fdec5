package pipeline

import (
	"fmt"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// chosen is the selection of a target and its selectors.
type chosen struct {
	prefix string
	// key is set if only one object can match.
	key string
	// match is nil if all objects with the prefix match.
	match func(*watchcache.Item) bool
	// field and value are the exact requirement by which watches are indexed.
	field, value string
}

// maxRequirements bounds the requirements of a request's selectors, including the values of sets:
// each object of a list and each event of a watch is compared with all of them.
const maxRequirements = 10_000

// newSelection parses the selectors. As in Kubernetes, options are checked after the selectors
// have been parsed and before their fields are looked up.
func newSelection(k *resource.Kind, t Target, labelSelector, fieldSelector string, options error) (*chosen, error) {
	if n := strings.Count(labelSelector, ",") + strings.Count(fieldSelector, ","); n >= maxRequirements {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the selectors have more than %d requirements", maxRequirements))
	}
	ls := labels.Everything()
	fs := fields.Everything()
	var err error
	if labelSelector != "" {
		if ls, err = labels.Parse(labelSelector); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	}
	if fieldSelector != "" {
		if fs, err = fields.ParseSelector(fieldSelector); err != nil {
			return nil, apierrors.NewBadRequest(err.Error())
		}
	}
	if options != nil {
		return nil, options
	}
	c := &chosen{prefix: k.Prefix(t.Namespace)}
	name, namespace := t.Name, t.Namespace
	var requirements []func(*watchcache.Item) bool
	for _, r := range fs.Requirements() {
		want, equal := r.Value, r.Operator == selection.Equals || r.Operator == selection.DoubleEquals
		var get func(resource.Object) string
		switch r.Field {
		case "metadata.name":
			if equal && name == "" {
				name = want
			}
			get = func(o resource.Object) string { return o.GetName() }
		case "metadata.namespace":
			if equal && namespace == "" && k.Namespaced {
				namespace = want
				c.prefix = k.Prefix(namespace)
			}
			get = func(o resource.Object) string { return o.GetNamespace() }
		default:
			if get = k.Fields[r.Field]; get == nil {
				return nil, apierrors.NewBadRequest(unknownField(k, r.Field))
			}
			if equal && c.field == "" && k.StoredAs == nil {
				c.field, c.value = r.Field, want
			}
		}
		requirements = append(requirements, func(it *watchcache.Item) bool { return (get(it.Object()) == want) == equal })
	}
	if name != "" && (namespace != "" || !k.Namespaced) {
		c.key = k.Key(namespace, name)
	}
	if t.Name != "" {
		requirements = append(requirements, func(it *watchcache.Item) bool { return it.Object().GetName() == t.Name })
	}
	if !ls.Empty() {
		requirements = append(requirements, func(it *watchcache.Item) bool { return ls.Matches(labels.Set(it.Object().GetLabels())) })
	}
	c.match = all(requirements)
	return c, nil
}

func all(requirements []func(*watchcache.Item) bool) func(*watchcache.Item) bool {
	switch len(requirements) {
	case 0:
		return nil
	case 1:
		return requirements[0]
	}
	return func(it *watchcache.Item) bool {
		for _, r := range requirements {
			if !r(it) {
				return false
			}
		}
		return true
	}
}

// unknownField returns Kubernetes' message: that of the kind's conversion function, or of the
// default one.
func unknownField(k *resource.Kind, path string) string {
	switch {
	case k.GVK.Group == "batch":
		return fmt.Sprintf("field label %q not supported for %s", path, k.GVK.Kind)
	case len(k.Fields) > 0 && k.GVK.Group != "apps":
		return "field label not supported: " + path
	}
	return fmt.Sprintf("%q is not a known field selector: only %q, %q", path, "metadata.name", "metadata.namespace")
}

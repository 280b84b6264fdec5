// Package document generates OpenAPI documents, version 2 and 3, from a table of kinds and the
// schemas of their Go types.
//
// Paths, operations, parameters and extensions are those of Kubernetes, because kubectl and
// generated clients look for them by name. The package must not invent schemas.
package document

import (
	"reflect"
	"slices"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// Resource is a row of the table.
type Resource struct {
	Group      string   `json:"group"`
	Version    string   `json:"version"`
	Kind       string   `json:"kind"`
	Resource   string   `json:"resource"`
	Namespaced bool     `json:"namespaced"`
	Verbs      []string `json:"verbs"`
	// ReturnsDeleted means that a delete returns the deleted object.
	ReturnsDeleted bool          `json:"returnsDeleted,omitempty"`
	Subresources   []Subresource `json:"subresources,omitempty"`
}

// Subresource is a subresource of a Resource.
type Subresource struct {
	Name    string   `json:"name"`
	Group   string   `json:"group"`
	Version string   `json:"version"`
	Kind    string   `json:"kind"`
	Verbs   []string `json:"verbs"`
	Connect string   `json:"connect,omitempty"`
}

func (r *Resource) gv() schema.GroupVersion {
	return schema.GroupVersion{Group: r.Group, Version: r.Version}
}

func (s *Subresource) gvk() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: s.Group, Version: s.Version, Kind: s.Kind}
}

// groupVersions returns the groups and versions of the table, in its order.
func groupVersions(table []Resource) []schema.GroupVersion {
	var out []schema.GroupVersion
	for i := range table {
		if gv := table[i].gv(); !slices.Contains(out, gv) {
			out = append(out, gv)
		}
	}
	return out
}

// sample returns a value of a kind's Go type.
func sample(gvk schema.GroupVersionKind) any {
	obj, err := types().New(gvk)
	if err != nil {
		panic(err) // the table contains a kind of an unknown group
	}
	return obj
}

// Packages returns the Go packages with the types that the documents need: those of the kinds,
// and of the types of their fields, recursively.
func Packages(table []Resource) []string {
	packages := []string{
		"k8s.io/apimachinery/pkg/apis/meta/v1", "k8s.io/apimachinery/pkg/api/resource",
		"k8s.io/apimachinery/pkg/runtime", "k8s.io/apimachinery/pkg/util/intstr", "k8s.io/apimachinery/pkg/version",
	}
	seen := map[reflect.Type]bool{}
	var walk func(t reflect.Type)
	walk = func(t reflect.Type) {
		if seen[t] {
			return
		}
		seen[t] = true
		if p := t.PkgPath(); (strings.HasPrefix(p, "k8s.io/api/") || strings.HasPrefix(p, "k8s.io/metrics/")) && !slices.Contains(packages, p) {
			packages = append(packages, p)
		}
		switch t.Kind() {
		case reflect.Pointer, reflect.Slice:
			walk(t.Elem())
		case reflect.Map:
			walk(t.Key())
			walk(t.Elem())
		case reflect.Struct:
			for i := range t.NumField() {
				walk(t.Field(i).Type)
			}
		}
	}
	gvs := groupVersions(table)
	for i := range table {
		for j := range table[i].Subresources {
			gvs = append(gvs, table[i].Subresources[j].gvk().GroupVersion())
		}
	}
	for gvk, t := range types().AllKnownTypes() { // openapi-gen processes whole packages
		if slices.Contains(gvs, gvk.GroupVersion()) {
			walk(t)
		}
	}
	slices.Sort(packages)
	return packages
}

// openTypes are kinds of every group and version.
var openTypes = map[string]any{
	"DeleteOptions": &metav1.DeleteOptions{},
	"WatchEvent":    &metav1.WatchEvent{},
}

// types holds the Go types of all groups.
var types = sync.OnceValue(func() *runtime.Scheme {
	all := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, metricsv1beta1.AddToScheme} {
		if err := add(all); err != nil {
			panic(err) // two types of one name
		}
	}
	return all
})

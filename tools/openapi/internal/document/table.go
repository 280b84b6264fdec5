// Package document makes OpenAPI documents, version 2 and 3, of a table of kinds
// and the schemas of their Go types.
//
// Paths, operations, parameters and extensions are Kubernetes': kubectl and
// generated clients look for them by name. It must never invent a schema.
package document

import (
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

// Resource is a row of the table.
type Resource struct {
	Group      string   `json:"group"`
	Version    string   `json:"version"`
	Kind       string   `json:"kind"`
	Resource   string   `json:"resource"`
	Namespaced bool     `json:"namespaced"`
	Verbs      []string `json:"verbs"`
	// ReturnsDeleted tells that a delete answers with the object.
	ReturnsDeleted bool          `json:"returnsDeleted,omitempty"`
	Subresources   []Subresource `json:"subresources,omitempty"`
}

// Subresource is one of a Resource.
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

// groupVersions are those of the table, in its order.
func groupVersions(table []Resource) []schema.GroupVersion {
	var out []schema.GroupVersion
	for i := range table {
		if gv := table[i].gv(); !slices.Contains(out, gv) {
			out = append(out, gv)
		}
	}
	return out
}

// sample is a value of a kind's Go type.
func sample(gvk schema.GroupVersionKind) any {
	obj, err := scheme.Scheme.New(gvk)
	if err != nil {
		panic(err) // a kind in the table that k8s.io/api does not have
	}
	return obj
}

// Packages are the Go packages whose types the documents need: those of the kinds,
// and of all that their fields lead to.
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
		if p := t.PkgPath(); strings.HasPrefix(p, "k8s.io/api/") && !slices.Contains(packages, p) {
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
	for gvk, t := range scheme.Scheme.AllKnownTypes() { // openapi-gen takes whole packages
		if slices.Contains(gvs, gvk.GroupVersion()) {
			walk(t)
		}
	}
	slices.Sort(packages)
	return packages
}

// openTypes are the kinds that every group and version has.
var openTypes = map[string]any{
	"DeleteOptions": &metav1.DeleteOptions{},
	"WatchEvent":    &metav1.WatchEvent{},
}

// Package row makes rows of the table of kinds: what can be derived from the Go
// type is derived, so that a kind's file holds only what is its own.
//
// It must never hold a rule of any one kind.
package row

import (
	"fmt"
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/resource"
)

// object and list are what *T and *L must be.
type object[T any] interface {
	*T
	resource.Object
}

type list[L any] interface {
	*L
	runtime.Object
}

// Namespaced makes the row of a namespaced kind; prefix is its etcd prefix below
// /registry, "pods". The kind's name and protobuf message are those of T.
func Namespaced[T, L any, PT object[T], PL list[L]](gv schema.GroupVersion, plural, prefix string) *resource.Kind {
	k := Cluster[T, L, PT, PL](gv, plural, prefix)
	k.Namespaced = true
	return k
}

// Cluster makes the row of a kind that lies in no namespace.
func Cluster[T, L any, PT object[T], PL list[L]](gv schema.GroupVersion, plural, prefix string) *resource.Kind {
	t := reflect.TypeFor[T]()
	k := &resource.Kind{
		GVK:       gv.WithKind(t.Name()),
		Resource:  plural,
		Singular:  strings.ToLower(t.Name()),
		ProtoName: strings.ReplaceAll(t.PkgPath(), "/", ".") + "." + t.Name(),
		New:       func() resource.Object { return PT(new(T)) },
		NewList:   func() runtime.Object { return PL(new(L)) },
	}
	k.Deprecated = deprecation(k.GVK, PT(new(T)))
	if prefix != "" {
		k.StorePrefix = "/registry/" + prefix + "/"
	}
	return k
}

// deprecation is the warning of a type that k8s.io/api says is deprecated, as
// Kubernetes words it.
func deprecation(gvk schema.GroupVersionKind, obj any) string {
	d, ok := obj.(interface{ APILifecycleDeprecated() (major, minor int) })
	if !ok {
		return ""
	}
	major, minor := d.APILifecycleDeprecated()
	text := fmt.Sprintf("%s %s is deprecated in v%d.%d+", gvk.GroupVersion(), gvk.Kind, major, minor)
	if r, ok := obj.(interface {
		APILifecycleReplacement() schema.GroupVersionKind
	}); ok {
		by := r.APILifecycleReplacement()
		text += fmt.Sprintf("; use %s %s", by.GroupVersion(), by.Kind)
	}
	return text
}

// Virtual makes the row of a kind that is posted and answered; it has no list.
func Virtual[T any, PT object[T]](gv schema.GroupVersion, plural, action string, namespaced bool) *resource.Kind {
	t := reflect.TypeFor[T]()
	return &resource.Kind{
		GVK:        gv.WithKind(t.Name()),
		Resource:   plural,
		Singular:   strings.ToLower(t.Name()),
		ProtoName:  strings.ReplaceAll(t.PkgPath(), "/", ".") + "." + t.Name(),
		New:        func() resource.Object { return PT(new(T)) },
		Namespaced: namespaced,
		Virtual:    action,
	}
}

// View is a subresource that reads and writes the parent under other rules.
func View(r resource.Rules) resource.Subresource {
	return resource.Subresource{Verbs: []string{"get", "patch", "update"}, View: &r}
}

// Scale is the scale subresource.
func Scale(s resource.Scale) resource.Subresource {
	return resource.Subresource{
		GVK:   schema.GroupVersionKind{Group: "autoscaling", Version: "v1", Kind: "Scale"},
		Verbs: []string{"get", "patch", "update"},
		Scale: &s,
	}
}

// Post is a subresource that is created only; action is what the pipeline does.
func Post(gvk schema.GroupVersionKind, action string) resource.Subresource {
	return resource.Subresource{GVK: gvk, Verbs: []string{"create"}, Post: action}
}

// Connect is a stream.
func Connect(gvk schema.GroupVersionKind, stream string, verbs ...string) resource.Subresource {
	return resource.Subresource{GVK: gvk, Verbs: verbs, Connect: stream}
}

// Package row creates rows of the table of kinds. It derives what it can from the Go type, so
// that the file of a kind only contains what is specific to the kind.
//
// It must never contain a rule of a specific kind.
package row

import (
	"fmt"
	"reflect"
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/services/apiserver/internal/resource"
)

// object and list are the constraints of *T and *L.
type object[T any] interface {
	*T
	resource.Object
}

type list[L any] interface {
	*L
	runtime.Object
}

// Namespaced returns the row of a namespaced kind. prefix is its etcd prefix below /registry,
// such as "pods". The kind's name and protobuf message are those of T.
func Namespaced[T, L any, PT object[T], PL list[L]](gv schema.GroupVersion, plural, prefix string) *resource.Kind {
	k := Cluster[T, L, PT, PL](gv, plural, prefix)
	k.Namespaced = true
	return k
}

// Cluster returns the row of a cluster-scoped kind.
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

// deprecation returns the warning for a type that k8s.io/api marks as deprecated, in Kubernetes'
// words.
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

// Virtual returns the row of a kind that can only be created and is not stored. It has no list.
func Virtual[T any, PT object[T]](gv schema.GroupVersion, plural string, action resource.Action, namespaced bool) *resource.Kind {
	t := reflect.TypeFor[T]()
	return &resource.Kind{
		GVK:        gv.WithKind(t.Name()),
		Resource:   plural,
		Singular:   strings.ToLower(t.Name()),
		ProtoName:  strings.ReplaceAll(t.PkgPath(), "/", ".") + "." + t.Name(),
		New:        func() resource.Object { return PT(new(T)) },
		Namespaced: namespaced,
		Action:     action,
	}
}

// Computed returns the row of a kind whose objects are computed when they are read.
func Computed[T, L any, PT object[T], PL list[L]](gv schema.GroupVersion, plural string, namespaced bool) *resource.Kind {
	k := Cluster[T, L, PT, PL](gv, plural, "")
	k.Namespaced, k.Computed = namespaced, true
	return k
}

// View returns a subresource that reads and writes the parent object with other rules. See
// resource.Subresource for resets.
func View(r resource.Rules, resets ...string) *resource.Subresource {
	return &resource.Subresource{Verbs: []string{"get", "patch", "update"}, View: &r, Resets: resets}
}

// Part returns a subresource that reads the parent object and writes a part of it; owns are the
// paths of the part.
func Part(r resource.Rules, owns ...string) *resource.Subresource {
	return &resource.Subresource{Verbs: []string{"get", "patch", "update"}, View: &r, Owns: owns}
}

// Scale returns the scale subresource.
func Scale(s resource.Scale) *resource.Subresource {
	return &resource.Subresource{
		GVK:   autoscalingv1.SchemeGroupVersion.WithKind("Scale"),
		Verbs: []string{"get", "patch", "update"},
		New:   func() resource.Object { return &autoscalingv1.Scale{} },
		Scale: &s,
	}
}

// Projection returns a subresource that lists and watches a part of the parent object.
func Projection[PT resource.Object](of func(PT) PT, same func(a, b PT) bool) *resource.Subresource {
	return &resource.Subresource{Verbs: []string{"list", "watch"}, Projection: &resource.Projection{
		Of:   func(o resource.Object) resource.Object { return of(o.(PT)) },
		Same: func(a, b resource.Object) bool { return same(a.(PT), b.(PT)) },
	}}
}

// post returns a subresource to which objects of type T are posted.
func post[T any, PT object[T]](gv schema.GroupVersion) *resource.Subresource {
	return &resource.Subresource{
		GVK:   gv.WithKind(reflect.TypeFor[T]().Name()),
		Verbs: []string{"create"},
		New:   func() resource.Object { return PT(new(T)) },
	}
}

// Change returns a subresource to which objects of type T are posted that change the parent.
func Change[T any, PT object[T]](gv schema.GroupVersion, c resource.Change) *resource.Subresource {
	s := post[T, PT](gv)
	s.Change = &c
	return s
}

// Removal returns a subresource to which objects of type T are posted that delete the parent.
func Removal[T any, PT object[T]](gv schema.GroupVersion, r resource.Removal) *resource.Subresource {
	s := post[T, PT](gv)
	s.Removal = &r
	return s
}

// Action returns a subresource to which objects of type T are posted for an action.
func Action[T any, PT object[T]](gv schema.GroupVersion, a resource.Action) *resource.Subresource {
	s := post[T, PT](gv)
	s.Action = a
	return s
}

// Connect returns a subresource that is a stream.
func Connect(gvk schema.GroupVersionKind, stream resource.Stream, verbs ...string) *resource.Subresource {
	return &resource.Subresource{GVK: gvk, Verbs: verbs, Connect: stream}
}

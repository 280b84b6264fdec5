// Package schemagen writes the table of list and map types that the field manager is compiled
// from: what Kubernetes' own schema says about each field beyond its Go type. It must never be
// linked into the apiserver.
package schemagen

import (
	"fmt"
	"io"
	"reflect"
	"sort"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/applyconfigurations"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/structured-merge-diff/v6/schema"

	"keelson.dev/services/apiserver/internal/kind"
)

// Write writes the table of all served kinds.
func Write(w io.Writer) error {
	converter := applyconfigurations.NewTypeConverter(scheme.Scheme)
	g := &generator{lines: map[string]string{}, seen: map[string]bool{}}
	for _, k := range kind.All() {
		obj := k.New().(runtime.Object)
		obj.GetObjectKind().SetGroupVersionKind(k.GVK)
		tv, err := converter.ObjectToTyped(obj)
		if err != nil {
			continue // kinds that cannot be applied (reviews) are tracked without a schema
		}
		g.schema = tv.Schema()
		g.named(*tv.TypeRef().NamedType)
	}
	names := make([]string, 0, len(g.lines))
	for name := range g.lines {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if _, err := fmt.Fprintln(w, g.lines[name]); err != nil {
			return err
		}
	}
	return nil
}

type generator struct {
	schema *schema.Schema
	lines  map[string]string
	seen   map[string]bool
}

func (g *generator) named(name string) {
	if g.seen[name] {
		return
	}
	g.seen[name] = true
	def, ok := g.schema.FindNamedType(name)
	if !ok {
		return
	}
	m := def.Map
	if m == nil {
		return
	}
	var words []string
	if m.ElementRelationship == schema.Atomic {
		words = append(words, "atomic")
	}
	fields := append([]schema.StructField(nil), m.Fields...)
	sort.Slice(fields, func(i, j int) bool { return fields[i].Name < fields[j].Name })
	for _, f := range fields {
		if word := g.field(f); word != "" {
			words = append(words, f.Name+"="+word)
		}
	}
	if len(words) > 0 {
		g.lines[name] = name + " " + strings.Join(words, " ")
	}
}

// field returns how a field differs from the defaults: lists are atomic, maps granular.
func (g *generator) field(f schema.StructField) string {
	if f.Type.NamedType != nil {
		g.named(*f.Type.NamedType)
		if r := f.Type.ElementRelationship; r != nil && *r == schema.Atomic {
			return "atomic"
		} else if r != nil {
			return "granular" // although its type is atomic
		}
		return ""
	}
	atom := f.Type.Inlined
	switch {
	case atom.List != nil:
		g.element(atom.List.ElementType)
		if atom.List.ElementRelationship != schema.Associative {
			return ""
		}
		if len(atom.List.Keys) == 0 {
			return "set"
		}
		return "keys(" + strings.Join(g.keys(atom.List), ",") + ")"
	case atom.Map != nil:
		g.element(atom.Map.ElementType)
		if atom.Map.ElementRelationship == schema.Atomic {
			return "atomic"
		}
	}
	return ""
}

func (g *generator) keys(list *schema.List) []string {
	keys := append([]string(nil), list.Keys...)
	sort.Strings(keys)
	atom, _ := g.schema.Resolve(list.ElementType)
	for i, key := range keys {
		if f, ok := atom.Map.FindField(key); ok && f.Default != nil {
			text := fmt.Sprint(f.Default)
			if reflect.TypeOf(f.Default).Kind() == reflect.String {
				text = fmt.Sprintf("%q", f.Default)
			}
			keys[i] += ":" + text
		}
	}
	return keys
}

func (g *generator) element(ref schema.TypeRef) {
	if ref.NamedType != nil {
		g.named(*ref.NamedType)
	}
}

package pipeline

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"keelson.dev/services/apiserver/internal/fieldmanager"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
)

// odd lists values that a client may send where any other value is expected. Lists and structs
// allow more invalid values.
var (
	odd        = []string{`null`, `1`, `"x"`, `{}`, `[null]`}
	oddLists   = []string{`[]`, `[1]`, `[[]]`, `[{}]`, `[{"$patch":1}]`, `[{"$patch":"delete"}]`, `{"$patch":"replace"}`}
	oddKeys    = []string{`[{"KEY":{}}]`, `[{"KEY":[]}]`, `[{"KEY":1},{"KEY":{}}]`, `[{"KEY":{},"$patch":"delete"}]`, `[{"KEY":null}]`}
	oddStructs = []string{`[]`, `{"x":null}`, `{"$patch":1}`, `{"$patch":"delete"}`, `{"$retainKeys":1}`, `{"$retainKeys":[{}]}`}
	oddOrders  = []string{`1`, `[{}]`, `[[],{}]`}
)

// fieldPaths visits the paths of a type's fields, each struct type once.
func fieldPaths(t reflect.Type, path string, seen map[reflect.Type]bool, visit func(path string, f reflect.StructField)) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Slice:
		if e := t.Elem(); e.Kind() == reflect.Struct {
			fieldPaths(e, path+"[]", seen, visit)
		}
	case reflect.Struct:
		if seen[t] {
			return
		}
		seen[t] = true
		for i := range t.NumField() {
			f := t.Field(i)
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "" {
				fieldPaths(f.Type, path, seen, visit)
				continue
			}
			at := strings.TrimPrefix(path+"."+name, ".")
			visit(at, f)
			fieldPaths(f.Type, at, seen, visit)
		}
	}
}

// nest returns the patch with a value at a path. prefix is put in front of the last name.
func nest(path, prefix, value string) string {
	parts := strings.Split(path, ".")
	for i := len(parts) - 1; i >= 0; i-- {
		name, list := strings.CutSuffix(parts[i], "[]")
		if list {
			// The added element has every possible merge key.
			value = `[` + strings.Replace(value, "{", `{"name":"x","type":"x","key":"x","ip":"x","uid":"x","port":1,"containerPort":1,"mountPath":"x","topologyKey":"x",`, 1) + `]`
			value = strings.ReplaceAll(value, ",}", "}")
		}
		if i == len(parts)-1 {
			name = prefix + name
		}
		value = fmt.Sprintf(`{%q:%s}`, name, value)
	}
	return value
}

// example returns an object with an element, or another value, at a path.
func example(k *resource.Kind, path, key string) resource.Object {
	obj := k.New()
	value := `{}`
	if key != "" {
		value = fmt.Sprintf(`[{%q:"x"}]`, key)
	}
	if json.Unmarshal([]byte(nest(path, "", value)), obj) != nil {
		obj = k.New()
	}
	obj.SetName("x")
	return obj
}

// TestOddPatches checks that any value at any path of a patch results in an object or an error,
// and never in a panic, neither in the patch nor in what a kind does with the object.
func TestOddPatches(t *testing.T) {
	table := resource.NewTable(kind.All()...)
	fields := fieldmanager.New(table)
	p := New(Config{Table: table})
	seen := map[reflect.Type]bool{}
	panics, patches := 0, 0
	for _, k := range table.Kinds() {
		if k.Virtual() {
			continue
		}
		var cur resource.Object
		try := func(kind types.PatchType, text string) {
			if panics > 20 {
				return
			}
			patches++
			defer func() {
				if r := recover(); r != nil {
					panics++
					t.Errorf("%s %s %s: panic: %v\n%s", kind, k.Resource, text, r, debug.Stack())
				}
			}()
			c := &change{ctx: context.Background(), kind: k, rules: &k.Rules, target: Target{Resource: k.GVR(), Namespace: "x", Name: "x"}}
			a := &patch{p: p, c: c, kind: kind, data: []byte(text)}
			obj, err := a.object(cur)
			if err == nil && kind == types.MergePatchType {
				handled(k, obj, cur, fields)
			}
		}
		fieldPaths(reflect.TypeOf(k.New()).Elem(), "", seen, func(path string, f reflect.StructField) {
			ft := f.Type
			for ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			values, key := odd, f.Tag.Get("patchMergeKey")
			cur = example(k, path, key)
			switch ft.Kind() {
			case reflect.Slice:
				values = slices.Concat(values, oddLists)
			case reflect.Struct, reflect.Map:
				values = slices.Concat(values, oddStructs)
			}
			if key != "" {
				for _, v := range oddKeys {
					values = append(values, strings.ReplaceAll(v, "KEY", key))
				}
			}
			for i, v := range values {
				if i >= len(odd) || ft.Kind() == reflect.Slice {
					try(types.StrategicMergePatchType, nest(path, "", v))
				}
				if !strings.Contains(v, "$") {
					try(types.MergePatchType, nest(path, "", v))
				}
			}
			if f.Tag.Get("patchStrategy") != "" {
				for _, v := range oddOrders {
					try(types.StrategicMergePatchType, nest(path, "$setElementOrder/", v))
					try(types.StrategicMergePatchType, nest(path, "$deleteFromPrimitiveList/", v))
				}
			}
		})
	}
	if patches < 5000 {
		t.Errorf("tried only %d patches", patches)
	}
}

// handled does with an object what the pipeline and the fronts do.
func handled(k *resource.Kind, obj, cur resource.Object, fields *fieldmanager.Fields) {
	doors := []*resource.Rules{&k.Rules}
	for _, s := range k.Subresources {
		if s.View != nil {
			doors = append(doors, s.View)
		}
	}
	for _, r := range doors {
		next := obj.DeepCopyObject().(resource.Object)
		if r.Default != nil {
			r.Default(next)
		}
		fields.Track(fieldmanager.Write{Kind: k, Old: cur, Object: next, Manager: "m", Now: time.Unix(1, 0)})
		if r.PrepareUpdate != nil {
			r.PrepareUpdate(next, cur)
		}
		if err := validateChanged(k, r, next, cur); err == nil && r.Warnings != nil {
			r.Warnings(next, cur)
		}
		fresh := obj.DeepCopyObject().(resource.Object)
		if r.PrepareCreate != nil {
			r.PrepareCreate(fresh)
		}
		if r.Validate != nil {
			r.Validate(fresh)
		}
	}
	if k.Cells != nil {
		k.Cells(obj)
	}
	for _, f := range k.Fields {
		f(obj)
	}
	if k.Graceful != nil {
		k.Graceful(obj, nil)
	}
	if k.Held != nil {
		k.Held(obj)
	}
	for _, s := range k.Subresources {
		if s.Scale != nil {
			s.Scale.Get(obj)
		}
	}
	if _, err := json.Marshal(obj); err != nil {
		panic(err)
	}
	if _, err := obj.Marshal(); err != nil {
		panic(err)
	}
}

package pipeline

import (
	"encoding/json"
	"flag"
	"math/rand/v2"
	"reflect"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/fieldmanager"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
)

var oddSeed = flag.Uint64("odd.seed", 1, "random seed of TestOddBodies")

// dice generates values that are nearly valid for a field.
type dice struct{ *rand.Rand }

func (d dice) of(values ...string) string { return values[d.IntN(len(values))] }

// value returns JSON for a type, mostly of the right form and sometimes not.
func (d dice) value(t reflect.Type, depth int) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if depth == 0 || d.IntN(8) == 0 {
		return d.of(`null`, `1`, `-1`, `1e400`, `"x"`, `""`, `{}`, `[]`, `[null]`, `[{}]`, `{"":null}`, `true`)
	}
	switch t.Kind() {
	case reflect.Struct:
		return d.object(t, depth, "")
	case reflect.Map:
		return `{` + d.of(`"a"`, `""`, `"f:a"`) + `:` + d.value(t.Elem(), depth-1) + `}`
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return d.of(`"eA=="`, `"!"`, `null`)
		}
		one := d.value(t.Elem(), depth-1)
		return d.of(`[`+one+`]`, `[`+one+`,`+one+`]`, `[`+one+`,null]`)
	case reflect.String:
		return d.of(`"x"`, `""`, `"a/b"`, `"\u0000"`, `"99999999999999999999"`, `"1Gi"`)
	case reflect.Bool:
		return d.of(`true`, `false`, `null`)
	}
	return d.of(`0`, `1`, `-9223372036854775808`, `9223372036854775807`, `1.5`)
}

// object returns JSON for a struct with some of its fields. It starts with head.
func (d dice) object(t reflect.Type, depth int, head string) string {
	parts := []string{}
	if head != "" {
		parts = append(parts, head)
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" || d.IntN(3) > 0 {
			continue
		}
		text, _ := json.Marshal(name)
		parts = append(parts, string(text)+":"+d.value(f.Type, depth-1))
	}
	return `{` + strings.Join(parts, ",") + `}`
}

// guarded reports a panic of f together with its input.
func guarded(t *testing.T, what, input string, f func()) {
	t.Helper()
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("%s %q: panic: %v\n%s", what, input, r, debug.Stack())
		}
	}()
	f()
}

// TestOddBodies checks that any body, apply or selector results in an object or an error, and
// never in a panic. The generated values depend on the seed only.
func TestOddBodies(t *testing.T) {
	d := dice{rand.New(rand.NewPCG(*oddSeed, *oddSeed))}
	table := resource.NewTable(kind.All()...)
	fields := fieldmanager.New(table)
	p := New(Config{Table: table})
	decoded, applied, selected := 0, 0, 0
	for _, k := range table.Kinds() {
		read := func(data []byte, m codec.MediaType) resource.Object {
			obj, _, err := codec.Decode(codec.Input{Data: data, Type: m, Want: k.GVK, Declared: k.GVK, New: k.New, Known: p.knows})
			if err != nil {
				return nil
			}
			decoded++
			if !k.Virtual() {
				handled(k, obj, obj.DeepCopyObject().(resource.Object), fields)
			}
			return obj
		}
		structure := reflect.TypeOf(k.New()).Elem()
		for range 12 {
			text := d.object(structure, 5, "")
			guarded(t, "JSON "+k.Resource, text, func() {
				obj := read([]byte(text), codec.JSON)
				if obj == nil {
					return
				}
				raw, err := obj.Marshal()
				if err != nil || len(raw) == 0 {
					return
				}
				for range 8 { // broken somewhere
					broken := append([]byte{}, raw...)
					broken[d.IntN(len(broken))] = byte(d.Uint32())
					broken = broken[:len(broken)-d.IntN(2)]
					guarded(t, "protobuf "+k.Resource, string(broken), func() { read(broken, codec.Message) })
					whole := codec.AppendEnvelopeHead(nil, k.GVK, len(broken))
					whole = append(append(whole, broken...), codec.EnvelopeTail...)
					whole[4+d.IntN(len(whole)-4)] ^= byte(1 << d.IntN(8))
					guarded(t, "envelope "+k.Resource, string(whole), func() { read(whole, codec.Protobuf) })
				}
			})
		}
		for range 40 {
			label := d.of("a", "!a", "a in (", "a in (b,c)", "a notin ()", "a=b", "a>1", "a>x", "=", ",", "a,,b", "\x00", "a==b,!c")
			field := d.of("metadata.name=a", "metadata.name!=", "metadata.namespace=a", "spec.nodeName=a", "x", "=", "a=b=c", `a=\`, `metadata.name=a\,b`, ",")
			guarded(t, "selector "+k.Resource, label+" "+field, func() {
				if c, err := newSelection(k, Target{Resource: k.GVR()}, label, field, nil); err == nil && c != nil {
					selected++
				}
			})
		}
		if k.Virtual() {
			continue
		}
		apiVersion := k.GVK.GroupVersion().String()
		head := `"apiVersion":"` + apiVersion + `","kind":"` + k.GVK.Kind + `"`
		for range 3 {
			text := d.object(structure, 4, head)
			guarded(t, "apply "+k.Resource, text, func() {
				configuration, _, err := readConfiguration(k, []byte(text), codec.Warn)
				if err != nil || checkConfiguration(k, nil, configuration) != nil {
					return
				}
				for _, old := range []resource.Object{nil, example(k, "metadata.finalizers", "")} {
					w := fieldmanager.Write{Kind: k, Old: old, Manager: "m", Now: time.Unix(1, 0)}
					obj, err := fields.Apply(w, runtime.DeepCopyJSON(configuration), true)
					if err == nil {
						applied++
						handled(k, obj, example(k, "metadata.finalizers", ""), fields)
					}
				}
			})
		}
	}
	for range 300 {
		text := d.of(`[{"op":"`, `[{"path":"`) + d.of("add", "remove", "test", "copy", "move", "x") + `","path":` +
			d.of(`"/data"`, `"/metadata/labels/-"`, `""`, `"/"`, `"x"`, `1`, `null`, `"/a/~2"`) + `,"from":` + d.of(`"/data"`, `""`, `null`, `1`) + `,"value":` + d.of(`null`, `{}`, `[]`, `1`) + `}]`
		guarded(t, "JSON patch", text, func() {
			_, _ = applyJSON([]byte(text), []byte(`{"data":{"a":"b"},"metadata":{"labels":{},"finalizers":["x"]}}`))
		})
	}
	if decoded < 300 || applied < 10 || selected < 50 {
		t.Errorf("only %d bodies were decoded, %d applies, %d selectors", decoded, applied, selected)
	}
}

// Package typedpatch applies the most common patches — merge or strategic merge patches of known
// fields with values of the right type — directly to an object's Go type, at a small fraction of
// the cost of going through JSON.
//
// It never decides about unusual patches (an unknown or duplicate field, a value of another type,
// a directive, a merged list): it returns false, and the caller uses the generic path, whose
// result and errors are authoritative. It must never have a different result from the generic
// path.
package typedpatch

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
)

// Merge applies a JSON merge patch (RFC 7386) to obj, a pointer to a struct that the caller owns.
// If it returns false, obj may be partially modified and must be discarded.
func Merge(obj any, patch []byte) bool { return apply(obj, patch, false) }

// Strategic applies a strategic merge patch in the same way.
func Strategic(obj any, patch []byte) bool { return apply(obj, patch, true) }

func apply(obj any, patch []byte, strategic bool) bool {
	if !json.Valid(patch) || strategic && bytes.IndexByte(patch, '$') >= 0 {
		return false
	}
	patch = bytes.TrimSpace(patch)
	if len(patch) == 0 || patch[0] != '{' {
		return false
	}
	p := patcher{strategic: strategic}
	v := reflect.ValueOf(obj).Elem()
	return p.object(fieldsOf(v.Type()), v, patch)
}

type patcher struct{ strategic bool }

// field is a field of a struct that a patch can set.
type field struct {
	index []int
	// special is true if a strategic merge patch does not simply replace a list, or replaces what
	// it would otherwise merge.
	special bool
}

var types sync.Map // reflect.Type -> map[string]field

var (
	unmarshaler  = reflect.TypeFor[json.Unmarshaler]()
	typeMetaType = reflect.TypeFor[metav1.TypeMeta]()
)

func fieldsOf(t reflect.Type) map[string]field {
	if f, ok := types.Load(t); ok {
		return f.(map[string]field)
	}
	out := map[string]field{}
	collect(t, nil, out)
	types.Store(t, out)
	return out
}

func collect(t reflect.Type, path []int, out map[string]field) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		index := append(append([]int(nil), path...), i)
		switch {
		case name == "-":
		case name == "" && f.Anonymous:
			if f.Type.Kind() == reflect.Struct && f.Type != typeMetaType {
				collect(f.Type, index, out)
			}
		case name == "":
		default:
			out[name] = field{index: index, special: f.Tag.Get("patchStrategy") != ""}
		}
	}
}

// object applies an object of the patch to a struct.
func (p *patcher) object(fields map[string]field, v reflect.Value, raw []byte) bool {
	return members(raw, func(key, value []byte) bool {
		f, ok := fields[string(key)]
		if !ok || p.strategic && f.special {
			return false
		}
		return p.value(v.FieldByIndex(f.index), value)
	})
}

// value applies a value of the patch to a field.
func (p *patcher) value(v reflect.Value, raw []byte) bool {
	if isNull(raw) {
		v.SetZero()
		return true
	}
	t := v.Type()
	if t.Kind() == reflect.Pointer {
		if !isStruct(t.Elem()) {
			return leaf(v, raw)
		}
		if raw[0] != '{' {
			return false
		}
		if v.IsNil() {
			v.Set(reflect.New(t.Elem()))
		}
		return p.object(fieldsOf(t.Elem()), v.Elem(), raw)
	}
	switch {
	case isStruct(t):
		if raw[0] != '{' {
			return false
		}
		return p.object(fieldsOf(t), v, raw)
	case t.Kind() == reflect.Map && !custom(t):
		return entries(v, raw)
	}
	return leaf(v, raw)
}

// isStruct reports whether JSON encodes t field by field.
func isStruct(t reflect.Type) bool { return t.Kind() == reflect.Struct && !custom(t) }

func custom(t reflect.Type) bool { return reflect.PointerTo(t).Implements(unmarshaler) }

// entries applies an object of the patch to a map of plain values.
func entries(v reflect.Value, raw []byte) bool {
	t := v.Type()
	if raw[0] != '{' || t.Key().Kind() != reflect.String || !plain(t.Elem()) {
		return false
	}
	if v.IsNil() {
		v.Set(reflect.MakeMap(t))
	}
	return members(raw, func(key, value []byte) bool {
		k := reflect.ValueOf(string(key)).Convert(t.Key())
		if isNull(value) {
			v.SetMapIndex(k, reflect.Value{})
			return true
		}
		e := reflect.New(t.Elem()).Elem()
		if !leaf(e, value) {
			return false
		}
		v.SetMapIndex(k, e)
		return true
	})
}

// plain reports whether values of type t are always replaced as a whole.
func plain(t reflect.Type) bool {
	return t.Kind() != reflect.Struct && t.Kind() != reflect.Map && t.Kind() != reflect.Pointer && t.Kind() != reflect.Interface || custom(t)
}

// leaf replaces a value. It leaves objects, and lists with nulls, to the generic path: a type
// with its own encoding may keep parts of its old value, and nulls in lists are dropped.
func leaf(v reflect.Value, raw []byte) bool {
	if raw[0] == '{' || raw[0] == '[' && bytes.Contains(raw, []byte("null")) {
		return false
	}
	fresh := reflect.New(v.Type())
	if s, ok := simpleString(raw); ok && v.Kind() == reflect.String && !custom(v.Type()) {
		v.SetString(s)
		return true
	}
	strict, err := kjson.UnmarshalStrict(raw, fresh.Interface())
	if err != nil || len(strict) > 0 {
		return false
	}
	v.Set(fresh.Elem())
	return true
}

func isNull(raw []byte) bool { return string(raw) == "null" }

// simpleString decodes a JSON string of printable ASCII characters without escapes.
func simpleString(raw []byte) (string, bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", false
	}
	for _, c := range raw[1 : len(raw)-1] {
		if c == '\\' || c < 0x20 || c >= 0x7f {
			return "", false
		}
	}
	return string(raw[1 : len(raw)-1]), true
}

// members calls f for each member of a valid JSON object. It stops and returns false if f does,
// or if a key is duplicated or contains an escape.
func members(raw []byte, f func(key, value []byte) bool) bool {
	var seen [16][]byte
	keys := seen[:0]
	var many map[string]bool // replaces keys once there are more than fit
	pos := skipSpace(raw, 1)
	if raw[pos] == '}' {
		return true
	}
	for {
		end := stringEnd(raw, pos)
		key := raw[pos+1 : end-1]
		if bytes.IndexByte(key, '\\') >= 0 {
			return false
		}
		if len(keys) == len(seen) && many == nil {
			many = make(map[string]bool, 4*len(keys))
			for _, k := range keys {
				many[string(k)] = true
			}
		}
		if many != nil {
			if many[string(key)] {
				return false
			}
			many[string(key)] = true
		} else {
			for _, k := range keys {
				if bytes.Equal(k, key) {
					return false
				}
			}
			keys = append(keys, key)
		}
		start := skipSpace(raw, skipSpace(raw, end)+1) // past the colon
		stop := valueEnd(raw, start)
		if !f(key, raw[start:stop]) {
			return false
		}
		pos = skipSpace(raw, stop)
		if raw[pos] == '}' {
			return true
		}
		pos = skipSpace(raw, pos+1) // past the comma
	}
}

func skipSpace(raw []byte, pos int) int {
	for raw[pos] == ' ' || raw[pos] == '\t' || raw[pos] == '\n' || raw[pos] == '\r' {
		pos++
	}
	return pos
}

// stringEnd returns the position after the string that begins at pos.
func stringEnd(raw []byte, pos int) int {
	for pos++; raw[pos] != '"'; pos++ {
		if raw[pos] == '\\' {
			pos++
		}
	}
	return pos + 1
}

// valueEnd returns the position after the value that begins at pos.
func valueEnd(raw []byte, pos int) int {
	switch raw[pos] {
	case '"':
		return stringEnd(raw, pos)
	case '{', '[':
		depth := 0
		for {
			switch raw[pos] {
			case '"':
				pos = stringEnd(raw, pos)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return pos + 1
				}
			}
			pos++
		}
	}
	for {
		switch raw[pos] {
		case ',', '}', ']', ' ', '\t', '\n', '\r':
			return pos
		}
		pos++
	}
}

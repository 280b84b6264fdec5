package client

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
)

// Configuration returns the JSON document for server-side apply of the fields that obj sets:
// those that are not zero. A pointer to a zero value is set. apiVersion and kind are those
// of k.
func Configuration(k *Kind, obj Object) ([]byte, error) {
	if u, ok := obj.(*Unstructured); ok {
		return u.MarshalJSON()
	}
	doc := settings(reflect.ValueOf(obj).Elem())
	fields, ok := doc.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("client: %T has no fields", obj)
	}
	fields["apiVersion"], fields["kind"] = k.APIVersion(), k.GVK.Kind
	data, err := json.Marshal(fields)
	if err != nil {
		return nil, fmt.Errorf("client: configuration of %s %s: %w", k.GVK.Kind, obj.GetName(), err)
	}
	return data, nil
}

var marshaler = reflect.TypeFor[json.Marshaler]()

// settings converts a value into what json.Marshal would write, without the fields that are
// zero. The tags of k8s.io types mark optional structs as required, so json.Marshal alone
// would claim empty ones ("strategy": {}).
func settings(v reflect.Value) any {
	if v.Type().Implements(marshaler) || v.CanAddr() && v.Addr().Type().Implements(marshaler) {
		if v.CanAddr() {
			return v.Addr().Interface()
		}
		return v.Interface()
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return settings(v.Elem())
	case reflect.Struct:
		out := map[string]any{}
		structSettings(v, out)
		return out
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return v.Interface()
		}
		out := make([]any, v.Len())
		for i := range out {
			out[i] = settings(v.Index(i))
		}
		return out
	case reflect.Map:
		out := make(map[string]any, v.Len())
		for iter := v.MapRange(); iter.Next(); {
			out[iter.Key().String()] = settings(iter.Value())
		}
		return out
	default:
		return v.Interface()
	}
}

func structSettings(v reflect.Value, out map[string]any) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && (name == "" || strings.Contains(opts, "inline")) {
			structSettings(v.Field(i), out)
			continue
		}
		if name == "-" || !f.IsExported() || v.Field(i).IsZero() {
			continue
		}
		if name == "" {
			name = f.Name
		}
		out[name] = settings(v.Field(i))
	}
}

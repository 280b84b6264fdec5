package codec

import (
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "sigs.k8s.io/json"

	"keelson.dev/services/apiserver/internal/resource"
)

// decodeText decodes JSON or YAML.
func decodeText(in Input) (resource.Object, []string, error) {
	data := in.Data
	var strict []error
	if in.Type == YAML {
		converted, err := YAMLToJSON(data, false)
		if err != nil {
			return nil, nil, unrecognized(in, err)
		}
		if in.Validation != Ignore {
			if _, err := YAMLToJSON(data, true); err != nil {
				strict = append(strict, err)
			}
		}
		data = converted
	}
	obj := in.New()
	if err := CheckText(data, reflect.TypeOf(obj)); err != nil {
		return nil, nil, err
	}
	gvk, err := typeMeta(data)
	if err != nil {
		return nil, nil, unrecognized(in, err)
	}
	if !in.Loose {
		if gvk.Kind == "" && in.Want.Kind == "" {
			return nil, nil, unrecognized(in, fmt.Errorf("Object 'Kind' is missing in '%s'", in.Data))
		}
	}
	gvk = defaultKind(gvk, in.Want)
	if gvk != in.Want {
		return nil, nil, wrongKind(in, gvk)
	}
	if in.Validation == Ignore {
		err = kjson.UnmarshalCaseSensitivePreserveInts(data, obj)
	} else {
		var more []error
		more, err = kjson.UnmarshalStrict(data, obj)
		strict = append(strict, more...)
	}
	if err != nil {
		return nil, nil, cannotHandle(in, gvk, err)
	}
	obj.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
	if len(strict) == 0 {
		return obj, nil, nil
	}
	if in.Validation == Strict {
		return nil, nil, cannotHandle(in, gvk, strictError(strict))
	}
	return obj, StrictWarnings(strict), nil
}

// typeMeta returns the apiVersion and kind of a JSON text.
func typeMeta(data []byte) (schema.GroupVersionKind, error) {
	var meta struct {
		APIVersion string `json:"apiVersion,omitempty"`
		Kind       string `json:"kind,omitempty"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(data, &meta); err != nil {
		return schema.GroupVersionKind{}, fmt.Errorf("couldn't get version/kind; json parse error: %w", err)
	}
	gv, err := schema.ParseGroupVersion(meta.APIVersion)
	if err != nil {
		return schema.GroupVersionKind{}, err
	}
	return gv.WithKind(meta.Kind), nil
}

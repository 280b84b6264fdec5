package codec

import (
	"bytes"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// message is implemented by every generated type of k8s.io/api.
type message interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
}

// AppendObject appends the encoding of an object of Kubernetes' types. The object's own TypeMeta
// must be empty or equal to gvk. The object is not modified.
func AppendObject(dst []byte, media MediaType, gvk schema.GroupVersionKind, obj runtime.Object) ([]byte, error) {
	switch media {
	case JSON:
		return appendJSON(dst, gvk, obj)
	case YAML:
		text, err := appendJSON(nil, gvk, obj)
		if err != nil {
			return dst, err
		}
		out, err := yaml.JSONToYAML(text)
		return append(dst, out...), err
	case Protobuf, Message:
		m, ok := obj.(message)
		if !ok {
			return dst, fmt.Errorf("%T has no protobuf encoding", obj)
		}
		size := m.Size()
		if media == Protobuf {
			dst = AppendEnvelopeHead(dst, gvk, size)
		}
		start := len(dst)
		dst = append(dst, make([]byte, size)...)
		if _, err := m.MarshalToSizedBuffer(dst[start:]); err != nil {
			return dst, err
		}
		if media == Protobuf {
			dst = append(dst, EnvelopeTail...)
		}
		return dst, nil
	}
	return dst, fmt.Errorf("cannot encode as %s", media)
}

// appendJSON appends the object with its type as the first fields, without modifying the object.
func appendJSON(dst []byte, gvk schema.GroupVersionKind, obj runtime.Object) ([]byte, error) {
	var buf bytes.Buffer
	if err := json.NewEncoder(&buf).Encode(obj); err != nil {
		return dst, err
	}
	text := buf.Bytes()
	if gvk.Kind == "" || obj.GetObjectKind().GroupVersionKind().Kind != "" {
		return append(dst, text...), nil
	}
	dst = appendTypeMeta(dst, gvk)
	if len(text) > 1 && text[1] != '}' {
		dst = append(dst, ',')
	}
	return append(dst, text[1:]...), nil
}

// appendTypeMeta appends `{"kind":"Pod","apiVersion":"v1"`.
func appendTypeMeta(dst []byte, gvk schema.GroupVersionKind) []byte {
	dst = append(dst, `{"kind":"`...)
	dst = append(dst, gvk.Kind...)
	dst = append(dst, `","apiVersion":"`...)
	if gvk.Group != "" {
		dst = append(dst, gvk.Group...)
		dst = append(dst, '/')
	}
	dst = append(dst, gvk.Version...)
	return append(dst, '"')
}

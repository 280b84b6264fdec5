package codec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"keelson.dev/services/apiserver/internal/watchcache"
)

// message is what every generated type of k8s.io/api can do.
type message interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
}

// AppendItem appends an item in the given media type (not Message: that is
// Item.Raw itself).
func AppendItem(dst []byte, media MediaType, item *watchcache.Item) ([]byte, error) {
	switch media {
	case Protobuf:
		dst = AppendEnvelopeHead(dst, item.Kind.GVK, len(item.Raw))
		dst = append(dst, item.Raw...)
		return append(dst, EnvelopeTail...), nil
	case Message:
		return append(dst, item.Raw...), nil
	}
	return AppendObject(dst, media, item.Kind.GVK, item.Object)
}

// AppendObject appends any object of Kubernetes' types. Its own TypeMeta must be
// empty or equal gvk; it is not changed.
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
	return dst, fmt.Errorf("cannot write %s", media)
}

// appendJSON writes the object with its type in front, without touching it.
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

// appendTypeMeta writes `{"kind":"Pod","apiVersion":"v1"`.
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

// ListHead is what a list says of itself.
type ListHead struct {
	GVK             schema.GroupVersionKind // the items'; the list's kind has "List" appended
	ResourceVersion int64
	Continue        string
	Remaining       *int64
}

// AppendList appends a whole list. Protobuf lists are the items' bytes one after
// another: nothing is decoded or encoded again.
func AppendList(dst []byte, media MediaType, head ListHead, items []*watchcache.Item) ([]byte, error) {
	gvk := head.GVK
	gvk.Kind += "List"
	meta := metav1.ListMeta{
		ResourceVersion:    strconv.FormatInt(head.ResourceVersion, 10),
		Continue:           head.Continue,
		RemainingItemCount: head.Remaining,
	}
	switch media {
	case Protobuf, Message:
		size := 1 + protowire.SizeBytes(meta.Size())
		for _, item := range items {
			size += 1 + protowire.SizeBytes(len(item.Raw))
		}
		if media == Protobuf {
			if dst == nil {
				dst = make([]byte, 0, EnvelopeSize(gvk, size))
			}
			dst = AppendEnvelopeHead(dst, gvk, size)
		}
		metaBytes, err := meta.Marshal()
		if err != nil {
			return dst, err
		}
		dst = append(dst, 1<<3|2)
		dst = protowire.AppendBytes(dst, metaBytes)
		for _, item := range items {
			dst = append(dst, 2<<3|2)
			dst = protowire.AppendBytes(dst, item.Raw)
		}
		if media == Protobuf {
			dst = append(dst, EnvelopeTail...)
		}
		return dst, nil
	case YAML:
		text, err := AppendList(nil, JSON, head, items)
		if err != nil {
			return dst, err
		}
		out, err := yaml.JSONToYAML(text)
		return append(dst, out...), err
	}
	metaText, err := json.Marshal(meta)
	if err != nil {
		return dst, err
	}
	dst = appendTypeMeta(dst, gvk)
	dst = append(dst, `,"metadata":`...)
	dst = append(dst, metaText...)
	dst = append(dst, `,"items":[`...)
	buf := bytes.NewBuffer(dst)
	enc := json.NewEncoder(buf)
	for i, item := range items {
		if i > 0 {
			buf.WriteByte(',')
		}
		if err := enc.Encode(item.Object); err != nil {
			return dst, err
		}
		buf.Truncate(buf.Len() - 1) // the encoder's newline
	}
	buf.WriteString("]}\n")
	return buf.Bytes(), nil
}

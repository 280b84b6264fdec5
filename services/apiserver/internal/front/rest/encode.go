package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"keelson.dev/services/apiserver/internal/codec"
	"keelson.dev/services/apiserver/internal/front/rest/negotiate"
	"keelson.dev/services/apiserver/internal/front/rest/table"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/watchcache"
)

// subject is an object to be written: an item of the cache, or an object that is not stored, such
// as a Scale, a TokenRequest or the object of a bookmark.
type subject struct {
	gvk  schema.GroupVersionKind
	kind *resource.Kind // for the table's columns; may be nil
	obj  resource.Object
	raw  []byte           // the object's protobuf message, if available
	item *watchcache.Item // where obj comes from when it is first needed; may be nil
	// marked is true for the default object of its kind, in the table of a list.
	marked bool
}

func subjectOf(item *watchcache.Item) subject {
	return subject{gvk: item.Kind.GVK, kind: item.Kind, raw: item.Raw, item: item}
}

// object returns the object. Formats that are made of its protobuf message do not need it.
func (s *subject) object() resource.Object {
	if s.obj == nil {
		s.obj = s.item.Object()
	}
	return s.obj
}

// buffers are reused between requests. Those larger than keptBuffer are left to the garbage
// collector.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

const keptBuffer = 512 << 10

func getBuffer() *[]byte { return buffers.Get().(*[]byte) }

func putBuffer(b *[]byte) {
	if cap(*b) <= keptBuffer {
		*b = (*b)[:0]
		buffers.Put(b)
	}
}

// appendText appends v as JSON, without the newline that encoders add.
func appendText(dst []byte, v any) ([]byte, error) {
	buf := bytes.NewBuffer(dst)
	if err := json.NewEncoder(buf).Encode(v); err != nil {
		return dst, err
	}
	return buf.Bytes()[:buf.Len()-1], nil
}

// appendTypeMeta appends the beginning of a JSON object: `{"kind":"Pod","apiVersion":"v1"`.
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

// appendJSON appends the object as JSON. Objects of the cache have no TypeMeta of their own; it
// is written before the fields that the encoder writes.
func (s *subject) appendJSON(dst []byte, withType bool) ([]byte, error) {
	var start int
	if withType && s.object().GetObjectKind().GroupVersionKind().Kind == "" {
		dst = appendTypeMeta(dst, s.gvk)
		start = len(dst)
		var err error
		if dst, err = appendText(dst, s.object()); err != nil {
			return dst, err
		}
		if dst[start+1] == '}' {
			return append(dst[:start], '}'), nil
		}
		dst[start] = ',' // in place of the object's opening brace
		return dst, nil
	}
	return appendText(dst, s.object())
}

// message returns the object's protobuf message.
func (s *subject) message() ([]byte, error) {
	if s.raw != nil {
		return s.raw, nil
	}
	return s.object().Marshal()
}

func metaGVK(kind string, beta bool) schema.GroupVersionKind {
	gvk := schema.GroupVersionKind{Group: "meta.k8s.io", Version: "v1", Kind: kind}
	if beta {
		gvk.Version = "v1beta1"
	}
	return gvk
}

// appendPartial appends the PartialObjectMetadata as JSON.
func (s *subject) appendPartial(dst []byte, beta bool) ([]byte, error) {
	dst = appendTypeMeta(dst, metaGVK("PartialObjectMetadata", beta))
	dst = append(dst, `,"metadata":`...)
	accessor, ok := s.object().(metav1.ObjectMetaAccessor)
	if !ok {
		return append(dst, "{}}"...), nil
	}
	dst, err := appendText(dst, accessor.GetObjectMeta())
	return append(dst, '}'), err
}

var errNoMetadata = errors.New("the object's message has no metadata")

// metadataField returns the first field of an object's message, with its tag. It is the message
// of a PartialObjectMetadata as well.
func metadataField(raw []byte) ([]byte, error) {
	for at := 0; at < len(raw); {
		num, typ, n := protowire.ConsumeTag(raw[at:])
		if n < 0 {
			return nil, errNoMetadata
		}
		m := protowire.ConsumeFieldValue(num, typ, raw[at+n:])
		if m < 0 {
			return nil, errNoMetadata
		}
		if num == 1 && typ == protowire.BytesType {
			return raw[at : at+n+m], nil
		}
		at += n + m
	}
	return nil, errNoMetadata
}

// appendEnveloped appends a message in Kubernetes' envelope.
func appendEnveloped(dst []byte, gvk schema.GroupVersionKind, message []byte) []byte {
	dst = codec.AppendEnvelopeHead(dst, gvk, len(message))
	dst = append(dst, message...)
	return append(dst, codec.EnvelopeTail...)
}

// appendTableHead appends the beginning of a Table, up to its rows.
func appendTableHead(dst []byte, meta *metav1.ListMeta, kind *resource.Kind, beta, columns bool) ([]byte, error) {
	dst = appendTypeMeta(dst, metaGVK("Table", beta))
	dst = append(dst, `,"metadata":`...)
	dst, err := appendText(dst, meta)
	if err != nil {
		return dst, err
	}
	dst = append(dst, `,"columnDefinitions":`...)
	if columns {
		dst = table.AppendColumns(dst, kind)
	} else {
		dst = append(dst, "null"...)
	}
	return append(dst, `,"rows":[`...), nil
}

const tableTail = "]}"

// appendRow appends the object's row of a Table.
func (s *subject) appendRow(dst []byte, include table.Include, beta bool) ([]byte, error) {
	var (
		included []byte
		err      error
	)
	switch include {
	case table.Metadata:
		included, err = s.appendPartial(nil, beta)
	case table.Object:
		included, err = s.appendJSON(nil, true)
	}
	if err != nil {
		return dst, err
	}
	marked := s.marked || s.kind != nil && s.kind.Marked != nil && s.kind.Marked(s.object())
	return table.AppendRow(dst, s.kind, s.object(), included, marked)
}

// append appends the object in any format, without a newline at the end of JSON. columns applies
// to tables.
func (s *subject) append(dst []byte, f negotiate.Format, include table.Include, columns bool) ([]byte, error) {
	if f.Encoding == negotiate.YAML {
		f.Encoding = negotiate.JSON
		text, err := s.append(nil, f, include, columns)
		if err != nil {
			return dst, err
		}
		return appendYAML(dst, text)
	}
	switch {
	case f.Transform == negotiate.Table:
		dst, err := appendTableHead(dst, &metav1.ListMeta{ResourceVersion: s.object().GetResourceVersion()}, s.kind, f.Beta, columns)
		if err != nil {
			return dst, err
		}
		if dst, err = s.appendRow(dst, include, f.Beta); err != nil {
			return dst, err
		}
		return append(dst, tableTail...), nil
	case f.Encoding == negotiate.Protobuf:
		message, err := s.message()
		gvk := s.gvk
		if err == nil && f.Transform == negotiate.PartialMetadata {
			gvk = metaGVK("PartialObjectMetadata", f.Beta)
			message, err = metadataField(message)
		}
		if err != nil {
			return dst, err
		}
		return appendEnveloped(dst, gvk, message), nil
	case f.Transform == negotiate.PartialMetadata:
		return s.appendPartial(dst, f.Beta)
	}
	return s.appendJSON(dst, true)
}

func appendYAML(dst, text []byte) ([]byte, error) {
	out, err := yaml.JSONToYAML(text)
	return append(dst, out...), err
}

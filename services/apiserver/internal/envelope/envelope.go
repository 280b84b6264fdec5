// Package envelope encodes objects for the store: in Kubernetes' own protobuf envelope ("k8s\x00"
// and a runtime.Unknown), with an additional field that Kubernetes' decoder skips. That field
// contains the trace context of the write, the write's id, and the version of the defaults that
// were applied to the object.
//
// It also sets metadata.resourceVersion in an encoded object without decoding the rest. The
// resourceVersion is the store's revision, so the stored bytes do not contain it.
//
// It must never keep or modify bytes that it was given: decoded values alias their input, encoded
// ones are new.
package envelope

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

// magic is the prefix of a value in Kubernetes' protobuf envelope.
const magic = "k8s\x00"

// Fields of runtime.Unknown, of the TypeMeta in it, and of our extension. Kubernetes' decoder
// skips unknown fields; numbers from 1000 on leave room for new fields of its own.
const (
	unknownTypeMeta    = 1
	unknownRaw         = 2
	unknownEncoding    = 3
	unknownContentType = 4
	unknownExtension   = 1000

	typeMetaAPIVersion = 1
	typeMetaKind       = 2

	extensionTraceparent = 1
	extensionWriteID     = 2
	extensionDefaults    = 3
)

// ErrMalformed is wrapped by every error that is caused by the bytes.
var ErrMalformed = errors.New("malformed stored value")

// Value is a stored object.
type Value struct {
	APIVersion, Kind string
	// Raw is the object's protobuf message, without the envelope and the resourceVersion. If JSON
	// is true, it is the whole JSON document instead, which is how Kubernetes stores custom
	// resources.
	Raw  []byte
	JSON bool
	// Traceparent is the W3C trace context of the write, or "".
	Traceparent string
	// WriteID is the id of the write, or "".
	WriteID string
	// Defaults is the resource.DefaultsVersion of the program that applied the object's defaults,
	// or 0.
	Defaults uint64
}

// Message is an object that can be encoded.
type Message interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
}

// EncodeObject returns the stored form of an object. v.Raw and v.JSON are not used. The object's
// resourceVersion should be empty, because the revision replaces it.
func EncodeObject(v Value, obj Message) ([]byte, error) {
	size := obj.Size()
	b := make([]byte, 0, overhead(v, size)+size)
	b = appendHead(b, v)
	b = protowire.AppendTag(b, unknownRaw, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	start := len(b)
	b = b[:start+size]
	n, err := obj.MarshalToSizedBuffer(b[start:])
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", v.Kind, err)
	}
	if n != size {
		return nil, fmt.Errorf("encode %s: %d bytes instead of %d", v.Kind, n, size)
	}
	return appendExtension(b, v), nil
}

func typeMetaSize(v Value) int {
	return 2 + protowire.SizeBytes(len(v.APIVersion)) + protowire.SizeBytes(len(v.Kind))
}

func extensionSize(v Value) int {
	n := 0
	if v.Traceparent != "" {
		n += 1 + protowire.SizeBytes(len(v.Traceparent))
	}
	if v.WriteID != "" {
		n += 1 + protowire.SizeBytes(len(v.WriteID))
	}
	if v.Defaults != 0 {
		n += 1 + protowire.SizeFixed64()
	}
	return n
}

func overhead(v Value, raw int) int {
	n := len(magic) + 1 + protowire.SizeBytes(typeMetaSize(v))
	n += 1 + protowire.SizeBytes(raw) - raw
	if e := extensionSize(v); e > 0 {
		n += protowire.SizeTag(unknownExtension) + protowire.SizeBytes(e)
	}
	return n
}

func appendHead(b []byte, v Value) []byte {
	b = append(b, magic...)
	b = protowire.AppendTag(b, unknownTypeMeta, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(typeMetaSize(v)))
	b = protowire.AppendTag(b, typeMetaAPIVersion, protowire.BytesType)
	b = protowire.AppendString(b, v.APIVersion)
	b = protowire.AppendTag(b, typeMetaKind, protowire.BytesType)
	return protowire.AppendString(b, v.Kind)
}

func appendExtension(b []byte, v Value) []byte {
	size := extensionSize(v)
	if size == 0 {
		return b
	}
	b = protowire.AppendTag(b, unknownExtension, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	if v.Traceparent != "" {
		b = protowire.AppendTag(b, extensionTraceparent, protowire.BytesType)
		b = protowire.AppendString(b, v.Traceparent)
	}
	if v.WriteID != "" {
		b = protowire.AppendTag(b, extensionWriteID, protowire.BytesType)
		b = protowire.AppendString(b, v.WriteID)
	}
	if v.Defaults != 0 {
		b = protowire.AppendTag(b, extensionDefaults, protowire.Fixed64Type)
		b = protowire.AppendFixed64(b, v.Defaults)
	}
	return b
}

// Decode decodes a stored value that Keelson or Kubernetes wrote. Raw aliases b.
func Decode(b []byte) (Value, error) {
	var v Value
	if !bytes.HasPrefix(b, []byte(magic)) {
		if t := bytes.TrimLeft(b, " \t\r\n"); len(t) > 0 && t[0] == '{' {
			return Value{Raw: b, JSON: true}, nil
		}
		return v, fmt.Errorf("%w: neither protobuf envelope nor JSON", ErrMalformed)
	}
	err := fields(b[len(magic):], func(num protowire.Number, typ protowire.Type, val, _ []byte) error {
		if typ != protowire.BytesType {
			return nil
		}
		switch num {
		case unknownTypeMeta:
			return fields(val, func(num protowire.Number, typ protowire.Type, val, _ []byte) error {
				switch {
				case num == typeMetaAPIVersion && typ == protowire.BytesType:
					v.APIVersion = intern(val)
				case num == typeMetaKind && typ == protowire.BytesType:
					v.Kind = intern(val)
				}
				return nil
			})
		case unknownRaw:
			v.Raw = val
		case unknownEncoding:
			if len(val) != 0 {
				return fmt.Errorf("%w: content encoding %q", ErrMalformed, val)
			}
		case unknownContentType:
			if len(val) != 0 && string(val) != "application/vnd.kubernetes.protobuf" {
				return fmt.Errorf("%w: content type %q", ErrMalformed, val)
			}
		case unknownExtension:
			return fields(val, func(num protowire.Number, typ protowire.Type, val, whole []byte) error {
				switch {
				case num == extensionTraceparent && typ == protowire.BytesType:
					v.Traceparent = string(val)
				case num == extensionWriteID && typ == protowire.BytesType:
					v.WriteID = string(val)
				case num == extensionDefaults && typ == protowire.Fixed64Type:
					_, _, n := protowire.ConsumeTag(whole)
					v.Defaults, _ = protowire.ConsumeFixed64(whole[n:])
				}
				return nil
			})
		}
		return nil
	})
	if err != nil {
		return Value{}, err
	}
	return v, nil
}

// WriteID returns the write's id of a stored value, or "".
func WriteID(b []byte) string {
	v, err := Decode(b)
	if err != nil {
		return ""
	}
	return v.WriteID
}

// intern avoids copying the few strings that nearly every object contains.
func intern(b []byte) string {
	switch string(b) {
	case "v1":
		return "v1"
	case "apps/v1":
		return "apps/v1"
	case "Pod":
		return "Pod"
	case "Event":
		return "Event"
	case "Lease":
		return "Lease"
	case "coordination.k8s.io/v1":
		return "coordination.k8s.io/v1"
	}
	return string(b)
}

// fields calls f for each field of a message. val is the content of a length-delimited field and
// nil for other types; whole is the entire field.
func fields(b []byte, f func(num protowire.Number, typ protowire.Type, val, whole []byte) error) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", ErrMalformed, protowire.ParseError(n))
		}
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		if m < 0 {
			return fmt.Errorf("%w: %w", ErrMalformed, protowire.ParseError(m))
		}
		var val []byte
		if typ == protowire.BytesType {
			val, _ = protowire.ConsumeBytes(b[n:])
		}
		if err := f(num, typ, val, b[:n+m:n+m]); err != nil {
			return err
		}
		b = b[n+m:]
	}
	return nil
}

// Fields of every object, and of its ObjectMeta.
const (
	objectMetadata      = 1
	metaResourceVersion = 6
	metaManagedFields   = 17
)

// WithResourceVersion returns the encoded object with metadata.resourceVersion set to rev,
// whatever it was before.
func WithResourceVersion(raw []byte, rev int64) ([]byte, error) {
	var digits [20]byte
	return splice(raw, strconv.AppendInt(digits[:0], rev, 10))
}

// Metadata returns an encoded object without everything but its metadata: a
// PartialObjectMetadata.
func Metadata(raw []byte) ([]byte, error) {
	var out []byte
	err := fields(raw, func(num protowire.Number, typ protowire.Type, _, whole []byte) error {
		if num == objectMetadata && typ == protowire.BytesType {
			if out == nil {
				out = whole // nearly always the only one
			} else {
				out = append(out, whole...)
			}
		}
		return nil
	})
	return out, err
}

// WithoutManagedFields returns the encoded object without metadata.managedFields.
func WithoutManagedFields(raw []byte) ([]byte, error) {
	out := make([]byte, 0, len(raw))
	err := fields(raw, func(num protowire.Number, typ protowire.Type, val, whole []byte) error {
		if num != objectMetadata || typ != protowire.BytesType {
			out = append(out, whole...)
			return nil
		}
		var kept pieces
		start, pos := 0, 0
		err := fields(val, func(num protowire.Number, _ protowire.Type, _, whole []byte) error {
			if num == metaManagedFields {
				kept.add(val[start:pos])
				start = pos + len(whole)
			}
			pos += len(whole)
			return nil
		})
		if err != nil {
			return err
		}
		kept.add(val[start:pos])
		out = protowire.AppendTag(out, objectMetadata, protowire.BytesType)
		out = protowire.AppendVarint(out, uint64(kept.size()))
		out = kept.appendTo(out)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// splice copies the object with rv as its only resourceVersion. Metadata in several pieces (which
// a decoder merges) remains in pieces; the first one gets rv.
func splice(raw, rv []byte) ([]byte, error) {
	out := make([]byte, 0, len(raw)+len(rv)+8)
	done := false
	err := fields(raw, func(num protowire.Number, typ protowire.Type, val, whole []byte) error {
		if num != objectMetadata || typ != protowire.BytesType {
			out = append(out, whole...)
			return nil
		}
		before, after, err := splitMeta(val)
		if err != nil {
			return err
		}
		size := before.size() + after.size()
		if !done {
			size += 1 + protowire.SizeBytes(len(rv))
		}
		out = protowire.AppendTag(out, objectMetadata, protowire.BytesType)
		out = protowire.AppendVarint(out, uint64(size))
		out = before.appendTo(out)
		if !done {
			out = protowire.AppendTag(out, metaResourceVersion, protowire.BytesType)
			out = protowire.AppendBytes(out, rv)
		}
		out = after.appendTo(out)
		done = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	if !done {
		head := protowire.AppendTag(nil, objectMetadata, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(1+protowire.SizeBytes(len(rv))))
		head = protowire.AppendTag(head, metaResourceVersion, protowire.BytesType)
		head = protowire.AppendBytes(head, rv)
		out = append(head, out...)
	}
	return out, nil
}

// pieces is a message in parts. There is nearly always a single part, which needs no allocation.
type pieces struct {
	first []byte
	rest  [][]byte
}

func (p *pieces) add(b []byte) {
	switch {
	case len(b) == 0:
	case p.first == nil:
		p.first = b
	default:
		p.rest = append(p.rest, b)
	}
}

func (p *pieces) size() int {
	n := len(p.first)
	for _, r := range p.rest {
		n += len(r)
	}
	return n
}

func (p *pieces) appendTo(b []byte) []byte {
	b = append(b, p.first...)
	for _, r := range p.rest {
		b = append(b, r...)
	}
	return b
}

// splitMeta returns what precedes and what follows the position of resourceVersion.
func splitMeta(meta []byte) (before, after pieces, err error) {
	cur, start, pos := &before, 0, 0
	err = fields(meta, func(num protowire.Number, typ protowire.Type, _, whole []byte) error {
		switch {
		case num == metaResourceVersion && typ == protowire.BytesType:
			cur.add(meta[start:pos])
			start = pos + len(whole)
			cur = &after
		case num > metaResourceVersion && cur == &before:
			cur.add(meta[start:pos])
			start = pos
			cur = &after
		}
		pos += len(whole)
		return nil
	})
	cur.add(meta[start:pos])
	return before, after, err
}

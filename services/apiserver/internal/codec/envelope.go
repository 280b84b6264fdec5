package codec

import (
	"bytes"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// magic is the prefix of Kubernetes' protobuf bodies.
var magic = []byte("k8s\x00")

// OpenEnvelope parses the envelope of a protobuf body: "k8s\x00" and a runtime.Unknown. The
// returned raw is a part of data.
func OpenEnvelope(data []byte) (apiVersion, kind string, raw []byte, err error) {
	rest, ok := bytes.CutPrefix(data, magic)
	if !ok {
		return "", "", nil, errors.New("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")
	}
	err = fields(rest, func(num protowire.Number, value []byte) error {
		switch num {
		case 1:
			return fields(value, func(num protowire.Number, value []byte) error {
				switch num {
				case 1:
					apiVersion = string(value)
				case 2:
					kind = string(value)
				}
				return nil
			})
		case 2:
			raw = value
		case 3:
			if len(value) != 0 {
				return fmt.Errorf("unsupported content encoding %q", value)
			}
		}
		return nil
	})
	return apiVersion, kind, raw, err
}

// fields calls f for each length-delimited field of a message and skips the others.
func fields(data []byte, f func(protowire.Number, []byte) error) error {
	for len(data) > 0 {
		num, typ, n := protowire.ConsumeTag(data)
		if n < 0 {
			return fmt.Errorf("malformed protobuf message: %w", protowire.ParseError(n))
		}
		data = data[n:]
		if typ != protowire.BytesType {
			n = protowire.ConsumeFieldValue(num, typ, data)
			if n < 0 {
				return fmt.Errorf("malformed protobuf message: %w", protowire.ParseError(n))
			}
			data = data[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(data)
		if n < 0 {
			return fmt.Errorf("malformed protobuf message: %w", protowire.ParseError(n))
		}
		data = data[n:]
		if err := f(num, value); err != nil {
			return err
		}
	}
	return nil
}

// AppendEnvelopeHead appends the part of the envelope that precedes a message of the given size.
// The message and EnvelopeTail complete it.
func AppendEnvelopeHead(dst []byte, gvk schema.GroupVersionKind, size int) []byte {
	apiVersion := gvk.GroupVersion().String()
	dst = append(dst, magic...)
	meta := 1 + protowire.SizeBytes(len(apiVersion)) + 1 + protowire.SizeBytes(len(gvk.Kind))
	dst = append(dst, 1<<3|2)
	dst = protowire.AppendVarint(dst, uint64(meta))
	dst = append(dst, 1<<3|2)
	dst = protowire.AppendString(dst, apiVersion)
	dst = append(dst, 2<<3|2)
	dst = protowire.AppendString(dst, gvk.Kind)
	dst = append(dst, 2<<3|2)
	return protowire.AppendVarint(dst, uint64(size))
}

// EnvelopeTail is the end of an envelope: an empty content encoding and an empty content type, as
// Kubernetes writes them.
const EnvelopeTail = "\x1a\x00\x22\x00"

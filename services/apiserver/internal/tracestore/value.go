package tracestore

import (
	"encoding/hex"
	"strconv"
	"strings"

	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
)

// maxNesting bounds the depth to which a value is formatted.
const maxNesting = 4

// text formats an attribute's value as text.
func text(v *commonpb.AnyValue) string { return nested(v, maxNesting) }

func nested(v *commonpb.AnyValue, depth int) string {
	if depth == 0 {
		return "…"
	}
	switch v := v.GetValue().(type) {
	case *commonpb.AnyValue_StringValue:
		return v.StringValue
	case *commonpb.AnyValue_BoolValue:
		return strconv.FormatBool(v.BoolValue)
	case *commonpb.AnyValue_IntValue:
		return strconv.FormatInt(v.IntValue, 10)
	case *commonpb.AnyValue_DoubleValue:
		return strconv.FormatFloat(v.DoubleValue, 'g', -1, 64)
	case *commonpb.AnyValue_BytesValue:
		return hex.EncodeToString(v.BytesValue[:min(len(v.BytesValue), maxText/2)])
	case *commonpb.AnyValue_ArrayValue:
		return joined(v.ArrayValue.GetValues(), func(e *commonpb.AnyValue) string { return nested(e, depth-1) })
	case *commonpb.AnyValue_KvlistValue:
		return joined(v.KvlistValue.GetValues(), func(e *commonpb.KeyValue) string {
			return e.GetKey() + "=" + nested(e.GetValue(), depth-1)
		})
	}
	return ""
}

func joined[T any](list []T, f func(T) string) string {
	var b strings.Builder
	for i, e := range list {
		if b.Len() > maxText {
			break
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(f(e))
	}
	return b.String()
}

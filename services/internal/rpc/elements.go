package rpc

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// elements counts the messages nested in an encoded message, in one pass and without
// decoding it. It stops counting beyond limit. Malformed messages are left to the decoder.
func elements(md protoreflect.MessageDescriptor, b []byte, limit int) (n int) {
	type level struct {
		md  protoreflect.MessageDescriptor
		end int // of what is left in b, counted from its end
	}
	stack := []level{{md, 0}}
	for len(stack) > 0 && n <= limit {
		top := stack[len(stack)-1]
		if len(b) <= top.end {
			stack = stack[:len(stack)-1]
			continue
		}
		num, typ, size := protowire.ConsumeTag(b)
		if size < 0 {
			return n
		}
		b = b[size:]
		if typ != protowire.BytesType {
			if size = protowire.ConsumeFieldValue(num, typ, b); size < 0 {
				return n
			}
			b = b[size:]
			continue
		}
		length, size := protowire.ConsumeVarint(b)
		if size < 0 || length > uint64(len(b)-size) {
			return n
		}
		b = b[size:]
		fd := top.md.Fields().ByNumber(num)
		if fd == nil || fd.Message() == nil {
			b = b[length:]
			continue
		}
		n++
		stack = append(stack, level{fd.Message(), len(b) - int(length)})
	}
	return n
}

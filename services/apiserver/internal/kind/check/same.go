package check

import (
	"bytes"
	"sync"

	"k8s.io/apimachinery/pkg/api/equality"
)

// encoded is implemented by every type of k8s.io/api.
type encoded interface {
	Size() int
	MarshalToSizedBuffer([]byte) (int, error)
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// Same reports whether two values are semantically equal: empty and missing lists and maps are
// equal, and so are quantities in different forms. Most compared values are identical, which
// comparing their encodings shows many times faster than reflection.
func Same[T any, P interface {
	*T
	encoded
}](a, b P) bool {
	if a == nil || b == nil {
		return a == b
	}
	n := a.Size()
	if n == b.Size() {
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		if cap(*buf) < 2*n {
			*buf = make([]byte, 2*n)
		}
		x, y := (*buf)[:n:n], (*buf)[n:2*n:2*n]
		_, errx := a.MarshalToSizedBuffer(x)
		_, erry := b.MarshalToSizedBuffer(y)
		if errx == nil && erry == nil && bytes.Equal(x, y) {
			return true
		}
	}
	return equality.Semantic.DeepEqual(a, b)
}

package pipeline

import (
	"crypto/rand"
	"encoding/base64"
	"strconv"
	"sync/atomic"
)

// writeIDs generates ids of writes. They are unique across all processes, for all practical
// purposes, and cheap to generate.
type writeIDs struct {
	prefix string
	n      atomic.Uint64
}

func newWriteIDs() *writeIDs {
	var b [9]byte
	rand.Read(b[:]) // never fails
	return &writeIDs{prefix: base64.RawURLEncoding.EncodeToString(b[:]) + "."}
}

func (w *writeIDs) next() string {
	var buf [40]byte
	return string(strconv.AppendUint(append(buf[:0], w.prefix...), w.n.Add(1), 36))
}

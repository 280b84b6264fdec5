// Package wire is store.Store over gRPC: members serve their stores with it to
// apiservers that are no members (Service), which use them as their own (Client).
// One implementation serves both stores.
//
// A member does the work: what its store says counts, and it settles what becomes
// of a write between it and the others. What is left is the way between the client
// and the member:
//
//	idle       the client speaks to one member at a time, the last one that helped.
//	failing    a call that surely did nothing is made again at the next member, for
//	           as long as settleTime.
//	in doubt   the way broke while a write was under way. A write that depends on a
//	           revision is repeated: its condition cannot hold twice. What is found
//	           of any other decides, if it can be told by Write.Settled. Otherwise the
//	           outcome is unknown, and is said to be.
//	watching   a watch is a stream from one member. When the way breaks, or the member
//	           is cut off from the others, it ends with an error, and its user begins
//	           anew from the last revision seen, at the next member.
//
// It must never report a conflict where the write may have happened, and never
// repeat a write whose condition could hold a second time.
package wire

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "keelson.dev/proto/keelson/store/v1"
	"keelson.dev/services/apiserver/internal/store"
)

const (
	// partBytes is about how much of a page, a batch or a commit goes into one
	// message.
	partBytes = 1 << 20
	// maxWrites bounds the writes of one request.
	maxWrites = 1000
)

// codesOf are the store's errors on the wire.
var codesOf = []struct {
	err  error
	code storev1.Code
}{
	{store.ErrUnknownOutcome, storev1.Code_CODE_UNKNOWN_OUTCOME},
	{store.ErrNotFound, storev1.Code_CODE_NOT_FOUND},
	{store.ErrExists, storev1.Code_CODE_EXISTS},
	{store.ErrConflict, storev1.Code_CODE_CONFLICT},
	{store.ErrCompacted, storev1.Code_CODE_COMPACTED},
	{store.ErrFutureRevision, storev1.Code_CODE_FUTURE_REVISION},
	{store.ErrFenced, storev1.Code_CODE_FENCED},
	{store.ErrTooMany, storev1.Code_CODE_TOO_MANY},
	{store.ErrUnavailable, storev1.Code_CODE_UNAVAILABLE},
	// The member's store is closed; the client's is not.
	{store.ErrClosed, storev1.Code_CODE_UNAVAILABLE},
}

// encode is an error of the store on the wire.
func encode(err error) *storev1.Error {
	out := &storev1.Error{Message: err.Error()}
	for _, c := range codesOf {
		if errors.Is(err, c.err) {
			out.Code = c.code
			break
		}
	}
	var compacted *store.CompactedError
	if errors.As(err, &compacted) {
		out.Oldest = int64(compacted.Oldest)
	}
	return out
}

// decoded is an error that a member's store gave: its words, and what it is.
type decoded struct {
	message string
	is      error
}

func (d *decoded) Error() string { return d.message }
func (d *decoded) Unwrap() error { return d.is }

func decode(e *storev1.Error) error {
	if e.Code == storev1.Code_CODE_COMPACTED {
		return &store.CompactedError{Oldest: store.Revision(e.Oldest)}
	}
	for _, c := range codesOf {
		if c.code == e.Code {
			return &decoded{message: e.Message, is: c.err}
		}
	}
	return errors.New(e.Message)
}

// failed is an error as a status.
func failed(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return status.FromContextError(ctx.Err()).Err()
	}
	e := encode(err)
	code := codes.Unknown
	if e.Code == storev1.Code_CODE_UNAVAILABLE {
		code = codes.Unavailable
	}
	s, detailErr := status.New(code, e.Message).WithDetails(e)
	if detailErr != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return s.Err()
}

// from is the error in a status: the store's, if it is one. said tells that a store
// said it.
func from(err error) (out error, said bool) {
	s, ok := status.FromError(err)
	if !ok {
		return err, false
	}
	for _, d := range s.Details() {
		if e, ok := d.(*storev1.Error); ok {
			return decode(e), true
		}
	}
	return err, false
}

func toEntry(e store.Entry) *storev1.Entry {
	return &storev1.Entry{Key: e.Key, Value: e.Value, ModRevision: int64(e.ModRevision), CreateRevision: int64(e.CreateRevision)}
}

func fromEntry(e *storev1.Entry) store.Entry {
	value := e.Value
	if value == nil {
		value = []byte{}
	}
	return store.Entry{Key: e.Key, Value: value, ModRevision: store.Revision(e.ModRevision), CreateRevision: store.Revision(e.CreateRevision)}
}

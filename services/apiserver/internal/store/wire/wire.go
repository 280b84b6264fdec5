// Package wire is store.Store over gRPC. Members serve their stores (Service) to apiservers
// without stores, which use them like their own (Client). The implementation is the same for
// both stores.
//
// The member does the work: its store's answers are final, and it resolves the outcome of
// writes among the members. What remains is the connection between the client and the member.
//
// # States of a client
//
//	idle         it calls one member at a time, the last one that succeeded.
//	failing      a call that certainly did nothing is repeated at the next member, for up
//	             to settleTime.
//	in doubt     the connection broke during a write. A write that depends on a revision
//	             is repeated: its condition cannot hold twice. The outcome of any other
//	             write is resolved by reading the key, if Write.Settled can recognize the
//	             value. Otherwise the outcome is unknown, and is reported as unknown.
//	watching     a watch is a stream from one member. If the connection breaks, or the
//	             member is cut off from the others, the watch ends with an error, and its
//	             user starts a new one, from the last revision received, at the next
//	             member.
//
// # Invariants
//
// A conflict is never reported if the write may have been applied, and a write whose condition
// could hold a second time is never repeated.
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
	// partBytes is the approximate size of the entries in one message of a page, a batch or a
	// commit.
	partBytes = 1 << 20
	// maxWrites bounds the writes of one request.
	maxWrites = 1000
)

// codesOf maps the store's errors to their codes on the wire.
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
	{store.ErrNoSpace, storev1.Code_CODE_NO_SPACE},
	{store.ErrUnavailable, storev1.Code_CODE_UNAVAILABLE},
	// The member's store is closed, but the client's is not.
	{store.ErrClosed, storev1.Code_CODE_UNAVAILABLE},
}

// encode converts an error of the store to its wire form.
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

// decoded is an error of a member's store: its message, and the error of package store that it
// is.
type decoded struct {
	message string
	is      error
}

func (d *decoded) Error() string { return d.message }
func (d *decoded) Unwrap() error { return d.is }

// decode converts an error from its wire form.
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

// failed converts an error to a gRPC status error, with its wire form in the details.
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

// from returns the store's error in a status error. said reports whether there is one;
// otherwise out is err.
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

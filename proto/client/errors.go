package client

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const statusURL = typePrefix + "k8s.io.apimachinery.pkg.apis.meta.v1.Status"

// fromRPC converts the error of an RPC into the one that callers see: the Kubernetes Status
// in its details; otherwise the context's own error, if the context ended; otherwise the
// gRPC error, wrapped, so that status.Code still works.
func fromRPC(ctx context.Context, what string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, io.EOF) {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return fmt.Errorf("%s: %w", what, err)
	}
	for _, detail := range st.Proto().GetDetails() {
		if s := decodeStatus(detail); s != nil {
			return s
		}
	}
	if code := st.Code(); (code == codes.Canceled || code == codes.DeadlineExceeded) && ctx.Err() != nil {
		return fmt.Errorf("%s: %w", what, ctx.Err())
	}
	return fmt.Errorf("%s: %w", what, err)
}

// decodeStatus returns the Kubernetes Status in an Any, or nil if it holds none.
func decodeStatus(a *anypb.Any) *apierrors.StatusError {
	if a.GetTypeUrl() != statusURL {
		return nil
	}
	var s metav1.Status
	if s.Unmarshal(a.GetValue()) != nil {
		return nil
	}
	return &apierrors.StatusError{ErrStatus: s}
}

// IsUnavailable reports whether err is not a server's verdict on the request: no server
// answered, the connection broke, or the server answered 503. A write that failed like this
// may have happened.
func IsUnavailable(err error) bool {
	var se *apierrors.StatusError
	if err == nil || errors.As(err, &se) {
		return apierrors.IsServiceUnavailable(err)
	}
	return status.Code(err) == codes.Unavailable || status.Code(err) == codes.Unknown && errors.Is(err, io.EOF)
}

// ToStatus returns the gRPC status error that carries s in its details, for servers of
// ResourceService. Its code is the one nearest to the HTTP code of s.
func ToStatus(s *metav1.Status) error {
	data, err := s.Marshal()
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	st := status.New(codeOf(s), s.Message).Proto()
	st.Details = append(st.Details, &anypb.Any{TypeUrl: statusURL, Value: data})
	return status.ErrorProto(st)
}

func codeOf(s *metav1.Status) codes.Code {
	switch s.Code {
	case 400, 413, 415, 422:
		return codes.InvalidArgument
	case 401:
		return codes.Unauthenticated
	case 403:
		return codes.PermissionDenied
	case 404:
		return codes.NotFound
	case 405, 406, 501:
		return codes.Unimplemented
	case 409:
		if s.Reason == metav1.StatusReasonAlreadyExists {
			return codes.AlreadyExists
		}
		return codes.Aborted
	case 410:
		return codes.OutOfRange
	case 429:
		return codes.ResourceExhausted
	case 503:
		return codes.Unavailable
	case 504:
		return codes.DeadlineExceeded
	}
	return codes.Internal
}

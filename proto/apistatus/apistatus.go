// Package apistatus holds the parts of the gRPC API that protobuf cannot express: how a
// Kubernetes Status travels in a gRPC error, and how a write names the epoch that it depends
// on. Servers and the Go client share it; it must never import either.
package apistatus

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// FenceKey is the gRPC metadata key that carries a leader's token.
const FenceKey = "keelson-fence"

// CauseFenced is the cause in the details of a 409 Conflict that refuses a write because
// its writer's epoch has ended.
const CauseFenced metav1.CauseType = "Fenced"

// typeURL is the type of a Status in the details of a gRPC status.
const typeURL = "type.googleapis.com/k8s.io.apimachinery.pkg.apis.meta.v1.Status"

// ToGRPC returns the gRPC status error that carries s in its details, and beside it, for
// clients that do not know Kubernetes, a google.rpc.ErrorInfo (domain [Domain], the reason of s),
// a BadRequest for causes that name fields, and a RetryInfo if s says when to retry. Its code is
// the one nearest to the HTTP code of s, codes.Internal if there is none. If all of this takes
// more than 7 KiB in headers, the BadRequest is left out, then texts are cut, and causes dropped.
func ToGRPC(s *metav1.Status) error {
	st, err := encode(s)
	if err != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return status.ErrorProto(st)
}

// FromGRPC returns the Kubernetes Status that st carries in its details, or nil if it
// carries none.
func FromGRPC(st *status.Status) *apierrors.StatusError {
	for _, detail := range st.Proto().GetDetails() {
		if s := FromAny(detail); s != nil {
			return s
		}
	}
	return nil
}

// FromAny returns the Kubernetes Status in a, or nil if a holds anything else.
func FromAny(a *anypb.Any) *apierrors.StatusError {
	if a.GetTypeUrl() != typeURL {
		return nil
	}
	var s metav1.Status
	if s.Unmarshal(a.GetValue()) != nil {
		return nil
	}
	return &apierrors.StatusError{ErrStatus: s}
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

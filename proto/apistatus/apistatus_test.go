package apistatus_test

import (
	"errors"
	"reflect"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/proto/apistatus"
)

var pods = schema.GroupResource{Resource: "pods"}

// A Status arrives as it was sent, with the gRPC code nearest to its HTTP code.
func TestStatusTravels(t *testing.T) {
	for _, test := range []struct {
		sent *apierrors.StatusError
		code codes.Code
	}{
		{apierrors.NewBadRequest("no"), codes.InvalidArgument},
		{apierrors.NewUnauthorized("no"), codes.Unauthenticated},
		{apierrors.NewForbidden(pods, "p", errors.New("no")), codes.PermissionDenied},
		{apierrors.NewNotFound(pods, "p"), codes.NotFound},
		{apierrors.NewMethodNotSupported(pods, "watch"), codes.Unimplemented},
		{apierrors.NewAlreadyExists(pods, "p"), codes.AlreadyExists},
		{apierrors.NewConflict(pods, "p", errors.New("no")), codes.Aborted},
		{apierrors.NewResourceExpired("no"), codes.OutOfRange},
		{apierrors.NewTooManyRequests("no", 1), codes.ResourceExhausted},
		{apierrors.NewInternalError(errors.New("no")), codes.Internal},
		{apierrors.NewServiceUnavailable("no"), codes.Unavailable},
		{apierrors.NewTimeoutError("no", 1), codes.DeadlineExceeded},
	} {
		st, ok := status.FromError(apistatus.ToGRPC(&test.sent.ErrStatus))
		if !ok || st.Code() != test.code || st.Message() != test.sent.ErrStatus.Message {
			t.Errorf("%v: got %v, want code %v", test.sent, st, test.code)
		}
		if got := apistatus.FromGRPC(st); got == nil || !reflect.DeepEqual(got.ErrStatus, test.sent.ErrStatus) {
			t.Errorf("%v: got %+v back", test.sent, got)
		}
	}
}

func TestNoStatus(t *testing.T) {
	if got := apistatus.FromGRPC(status.New(codes.NotFound, "no")); got != nil {
		t.Errorf("a gRPC status without details: got %v, want nil", got)
	}
	junk := &anypb.Any{TypeUrl: "type.googleapis.com/k8s.io.apimachinery.pkg.apis.meta.v1.Status", Value: []byte{0xff}}
	other := &anypb.Any{TypeUrl: "type.googleapis.com/k8s.io.api.core.v1.Pod"}
	for _, a := range []*anypb.Any{nil, junk, other} {
		if got := apistatus.FromAny(a); got != nil {
			t.Errorf("%v: got %v, want nil", a, got)
		}
	}
}

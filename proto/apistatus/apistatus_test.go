package apistatus_test

import (
	"errors"
	"fmt"
	"net"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

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

// invalid returns a 422 with a number of causes.
func invalid(causes int) *metav1.Status {
	var list field.ErrorList
	for i := range causes {
		list = append(list, field.Invalid(field.NewPath("spec", "containers").Index(i).Child("image"), "%"+strings.Repeat("ä", 20), "must not be like this"))
	}
	return &apierrors.NewInvalid(schema.GroupKind{Group: "apps", Kind: "Deployment"}, "web", list).ErrStatus
}

func TestDetails(t *testing.T) {
	details := func(s *metav1.Status) (info *errdetails.ErrorInfo, bad *errdetails.BadRequest, retry *errdetails.RetryInfo) {
		st := status.Convert(apistatus.ToGRPC(s))
		if apistatus.FromAny(st.Proto().GetDetails()[0]) == nil {
			t.Errorf("the first detail is %v, want the Status", st.Proto().GetDetails()[0])
		}
		for _, d := range st.Details() {
			switch d := d.(type) {
			case *errdetails.ErrorInfo:
				info = d
			case *errdetails.BadRequest:
				bad = d
			case *errdetails.RetryInfo:
				retry = d
			}
		}
		return info, bad, retry
	}
	info, bad, retry := details(invalid(2))
	if info.GetDomain() != "keelson.dev" || info.GetReason() != "Invalid" || !reflect.DeepEqual(info.GetMetadata(), map[string]string{"group": "apps", "kind": "Deployment", "name": "web"}) {
		t.Errorf("ErrorInfo: %v", info)
	}
	if v := bad.GetFieldViolations(); len(v) != 2 || v[1].GetField() != "spec.containers[1].image" || v[1].GetReason() != "FieldValueInvalid" || !strings.Contains(v[1].GetDescription(), "must not be like this") {
		t.Errorf("BadRequest: %v", bad)
	}
	if retry != nil {
		t.Errorf("RetryInfo: %v", retry)
	}
	info, bad, retry = details(&apierrors.NewTooManyRequests("busy", 3).ErrStatus)
	if info.GetReason() != "TooManyRequests" || bad != nil || retry.GetRetryDelay().AsDuration().Seconds() != 3 {
		t.Errorf("429: %v, %v, %v", info, bad, retry)
	}
	// A cause without a field is no violation of one.
	fenced := apierrors.NewConflict(pods, "p", errors.New("no")).ErrStatus
	fenced.Details.Causes = []metav1.StatusCause{{Type: apistatus.CauseFenced}}
	if _, bad, _ := details(&fenced); bad != nil {
		t.Errorf("BadRequest of a conflict: %v", bad)
	}
}

// TestErrorsFitInHeaders checks that clients that take 8 KiB of headers receive every error, with as
// much of it as fits.
func TestErrorsFitInHeaders(t *testing.T) {
	var sent *metav1.Status
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error { return apistatus.ToGRPC(sent) }))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	defer func() { server.Stop(); <-done }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithMaxHeaderListSize(8<<10))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	long := strings.Repeat("日本", 100<<10)
	huge := &metav1.Status{
		Status: metav1.StatusFailure, Code: 400, Reason: metav1.StatusReason(long), Message: long,
		Details: &metav1.StatusDetails{Name: long, Group: long, Kind: long, UID: "u", RetryAfterSeconds: 2},
	}
	broken := &metav1.Status{Status: metav1.StatusFailure, Code: 404, Reason: metav1.StatusReasonNotFound, Message: "\xff\xfe", Details: &metav1.StatusDetails{Name: "\xff"}}
	for name, tc := range map[string]struct {
		status *metav1.Status
		causes int // at least
		whole  bool
	}{
		"small": {invalid(2), 2, true}, "without violations": {invalid(9), 9, false}, "with some causes": {invalid(100), 8, false},
		"with many more": {invalid(2000), 8, false}, "huge texts": {huge, 0, false}, "not UTF-8": {broken, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			sent = tc.status
			got := status.Convert(conn.Invoke(t.Context(), "/a.B/C", &emptypb.Empty{}, &emptypb.Empty{}))
			s := apistatus.FromGRPC(got)
			if s == nil {
				t.Fatalf("no Status in %v", got)
			}
			st := s.ErrStatus
			if st.Code != tc.status.Code || !utf8.ValidString(st.Message) || !utf8.ValidString(got.Message()) || got.Message() == "" {
				t.Errorf("code %d, message of %d bytes", st.Code, len(st.Message))
			}
			if len(st.Details.Causes) < tc.causes {
				t.Errorf("%d causes, want at least %d", len(st.Details.Causes), tc.causes)
			}
			if tc.whole && !reflect.DeepEqual(st, *tc.status) {
				t.Errorf("got %+v, want %+v", st, *tc.status)
			}
			if tc.status.Details.RetryAfterSeconds != st.Details.RetryAfterSeconds {
				t.Error("retryAfterSeconds is lost")
			}
		})
	}
	for n := 1; n < 100; n += 3 { // no size in between is too large
		sent = invalid(n)
		if got := status.Convert(conn.Invoke(t.Context(), "/a.B/C", &emptypb.Empty{}, &emptypb.Empty{})); apistatus.FromGRPC(got) == nil {
			t.Fatalf("with %d causes: %v", n, got)
		}
	}
}

func BenchmarkToGRPC(b *testing.B) {
	for _, s := range []*metav1.Status{&apierrors.NewNotFound(pods, "p").ErrStatus, invalid(2), invalid(100)} {
		b.Run(fmt.Sprint(s.Code, "-", len(s.Details.Causes)), func(b *testing.B) {
			for b.Loop() {
				_ = apistatus.ToGRPC(s)
			}
		})
	}
}

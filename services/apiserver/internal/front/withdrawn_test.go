package front_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// begun is closed when the initial state of a watch has been written.
type begun struct {
	*httptest.ResponseRecorder
	initial chan struct{}
}

func (b *begun) Write(p []byte) (int, error) {
	n, err := b.ResponseRecorder.Write(p)
	if bytes.Contains(p, []byte("k8s.io/initial-events-end")) {
		close(b.initial)
	}
	return n, err
}

// TestWatchesEndWhenRightsAreLost checks that a watch ends normally on every front when its user
// loses the right to it, and that a new watch is refused.
func TestWatchesEndWhenRightsAreLost(t *testing.T) {
	w := newWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	get := func() (*begun, <-chan struct{}) {
		r := httptest.NewRequestWithContext(ctx, "GET", "/api/v1/namespaces/mine/secrets?watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan", nil)
		r.Header.Set("Authorization", "Bearer namespace")
		out, done := &begun{httptest.NewRecorder(), make(chan struct{})}, make(chan struct{})
		go func() { w.rest.ServeHTTP(out, r); close(done) }()
		return out, done
	}
	out, done := get()
	<-out.initial
	user := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer namespace")
	watch := func() resourcev1.ResourceService_WatchClient {
		stream, err := w.grpc.Watch(user, &resourcev1.WatchRequest{Ref: &resourcev1.Ref{Version: "v1", Resource: "secrets", Namespace: "mine"}, SendInitialEvents: true})
		if err != nil {
			t.Fatal(err)
		}
		return stream
	}
	stream := watch()
	for {
		ev, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if ev.GetInitialEventsEnd() {
			break
		}
	}
	many, err := w.grpc.WatchMany(user)
	if err != nil {
		t.Fatal(err)
	}
	add := func(id uint32) *resourcev1.WatchManyResponse {
		if err := many.Send(&resourcev1.WatchManyRequest{Command: &resourcev1.WatchManyRequest_Add{Add: &resourcev1.AddWatch{Id: id, Credits: 1, Watch: &resourcev1.WatchRequest{
			Ref: &resourcev1.Ref{Version: "v1", Resource: "secrets", Namespace: "mine"}, SendInitialEvents: true,
		}}}}); err != nil {
			t.Fatal(err)
		}
		r, err := many.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := add(1); r.GetEvent() == nil {
		t.Fatal(r)
	}
	w.rights.RBAC.RemoveBinding("mine", "namespace")
	if r, err := many.Recv(); err != nil || r.GetId() != 1 || r.GetEnd() == nil || r.GetEnd().GetStatus() != nil {
		t.Errorf("gRPC, one of many: %v %v; want its end, without credits", r, err)
	}
	if r := add(2); r.GetEnd().GetStatus() == nil {
		t.Errorf("gRPC, a new one of many: %v", r)
	}
	if ev, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("gRPC: %v %v; want the end of the stream", ev, err)
	}
	<-done
	if bytes.Contains(out.Body.Bytes(), []byte("ERROR")) {
		t.Errorf("REST: %s", out.Body)
	}
	if _, err := watch().Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("gRPC, new watch: %v", err)
	}
	out, done = get()
	if <-done; out.Code != 403 {
		t.Errorf("REST, new watch: %d", out.Code)
	}
}

// TestEmptyTokens checks that a call with an empty bearer token is refused rather than served as
// anonymous.
func TestEmptyTokens(t *testing.T) {
	w := newWorld(t)
	for _, value := range []string{"Bearer ", "Bearer", "", "secret-without-scheme"} {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", value)
		_, err := w.grpc.Get(ctx, &resourcev1.GetRequest{Ref: &resourcev1.Ref{Version: "v1", Resource: "secrets", Namespace: "mine", Name: "own"}})
		if s := status.Convert(err); s.Code() != codes.Unauthenticated || !strings.Contains(s.Message(), "contains no token") || strings.Contains(s.Message(), "secret-without") {
			t.Errorf("%q: %v", value, err)
		}
	}
}

package grpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	front "keelson.dev/services/apiserver/internal/front/grpc"
)

// manyStream is a WatchMany stream of a test.
type manyStream struct {
	t testing.TB
	resourcev1.ResourceService_WatchManyClient
}

func watchMany(t testing.TB, c *client.Client) *manyStream {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	stream, err := resourcev1.NewResourceServiceClient(c.Conn()).WatchMany(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return &manyStream{t, stream}
}

func (s *manyStream) send(r *resourcev1.WatchManyRequest) {
	s.t.Helper()
	if err := s.Send(r); err != nil {
		s.t.Fatal(err)
	}
}

func (s *manyStream) add(id, credits uint32, w *resourcev1.WatchRequest) {
	s.t.Helper()
	s.send(&resourcev1.WatchManyRequest{Command: &resourcev1.WatchManyRequest_Add{Add: &resourcev1.AddWatch{Id: id, Credits: credits, Watch: w}}})
}

func (s *manyStream) remove(id uint32) {
	s.t.Helper()
	s.send(&resourcev1.WatchManyRequest{Command: &resourcev1.WatchManyRequest_Remove{Remove: &resourcev1.RemoveWatch{Id: id}}})
}

func (s *manyStream) grant(id, credits uint32) {
	s.t.Helper()
	s.send(&resourcev1.WatchManyRequest{Command: &resourcev1.WatchManyRequest_Grant{Grant: &resourcev1.GrantCredits{Id: id, Credits: credits}}})
}

func (s *manyStream) event(id uint32) *resourcev1.WatchResponse {
	s.t.Helper()
	r, err := s.Recv()
	if err != nil {
		s.t.Fatal(err)
	}
	if r.GetId() != id || r.GetEvent() == nil {
		s.t.Fatalf("got %v; want an event of watch %d", r, id)
	}
	return r.GetEvent()
}

// end receives the end of a watch, with the reason of its Status or none.
func (s *manyStream) end(id uint32, reason metav1.StatusReason) {
	s.t.Helper()
	r, err := s.Recv()
	if err != nil {
		s.t.Fatal(err)
	}
	var st metav1.Status
	if a := r.GetEnd().GetStatus(); a != nil {
		if err := st.Unmarshal(a.GetValue()); err != nil {
			s.t.Fatal(err)
		}
	}
	if r.GetId() != id || r.GetEnd() == nil || st.Reason != reason {
		s.t.Fatalf("got %v (%v); want the end of watch %d with %q", r, st, id, reason)
	}
}

func maps(namespace string) *resourcev1.Ref {
	return &resourcev1.Ref{Version: "v1", Resource: "configmaps", Namespace: namespace}
}

func createMap(t testing.TB, c *client.Client, namespace, name string) *corev1.ConfigMap {
	t.Helper()
	obj, err := client.For[*corev1.ConfigMap](c).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}})
	if err != nil {
		t.Fatal(err)
	}
	return obj
}

// TestWatchMany checks credits, removal, the independence of watches, and that a watch resumes
// from any event.
func TestWatchMany(t *testing.T) {
	c := dial(t, serve(t))
	for i := range 4 {
		createMap(t, c, "a", fmt.Sprint("m", i))
	}
	s := watchMany(t, c)
	s.add(1, 1, &resourcev1.WatchRequest{Ref: maps("a"), SendInitialEvents: true})
	first := s.event(1)
	if first.GetType() != resourcev1.WatchResponse_TYPE_ADDED {
		t.Fatal(first)
	}
	// The first waits for credits and holds up no other.
	s.add(2, math.MaxUint32, &resourcev1.WatchRequest{Ref: maps("b"), SendInitialEvents: true})
	if ev := s.event(2); !ev.GetInitialEventsEnd() {
		t.Fatal(ev)
	}
	made := createMap(t, c, "b", "new")
	if ev := s.event(2); ev.GetResourceVersion() != made.ResourceVersion {
		t.Fatal(ev)
	}
	s.grant(1, 3)
	for range 3 {
		s.event(1)
	}
	s.add(3, 100, &resourcev1.WatchRequest{Ref: maps("a"), ResourceVersion: first.GetResourceVersion()})
	for range 3 {
		s.event(3) // what came after the first event
	}
	s.remove(1)
	s.end(1, "")
	s.remove(1) // it has ended
	s.grant(1, 1)
	createMap(t, c, "a", "m4")
	if ev := s.event(3); ev.GetType() != resourcev1.WatchResponse_TYPE_ADDED {
		t.Fatal(ev)
	}
	s.add(1, 10, &resourcev1.WatchRequest{Ref: maps("none"), SendInitialEvents: true}) // the id is free again
	if ev := s.event(1); !ev.GetInitialEventsEnd() {
		t.Fatal(ev)
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the client's end: %v %v", r, err)
	}
}

// TestWatchManyRefusals checks that a watch that cannot be had ends alone, and that a malformed
// command ends the stream.
func TestWatchManyRefusals(t *testing.T) {
	c := dial(t, serve(t))
	s := watchMany(t, c)
	s.add(1, 1, &resourcev1.WatchRequest{Ref: &resourcev1.Ref{Version: "v1", Resource: "unknowns"}})
	s.end(1, metav1.StatusReasonNotFound)
	s.add(2, 1, &resourcev1.WatchRequest{Ref: maps("a"), View: 77})
	s.end(2, metav1.StatusReasonBadRequest)
	s.add(3, 1, &resourcev1.WatchRequest{Ref: maps("a"), LabelSelector: "((("})
	s.end(3, metav1.StatusReasonBadRequest)
	s.add(4, 1, nil)
	s.end(4, metav1.StatusReasonBadRequest)
	for i := range historyEvents + 1 {
		obj := createMap(t, c, "a", fmt.Sprint("m", i))
		if i == 0 {
			defer func(rv string) {
				s := watchMany(t, c)
				s.add(1, 1, &resourcev1.WatchRequest{Ref: maps("a"), ResourceVersion: "1"})
				s.end(1, metav1.StatusReasonExpired)
			}(obj.ResourceVersion)
		}
	}
	for id := range uint32(1000) {
		s.add(10+id, 0, &resourcev1.WatchRequest{Ref: maps("b"), SendInitialEvents: true})
	}
	s.add(5, 1, &resourcev1.WatchRequest{Ref: maps("b"), SendInitialEvents: true})
	s.end(5, metav1.StatusReasonTooManyRequests)
	s.remove(10)
	s.end(10, "")
	s.add(5, 1, &resourcev1.WatchRequest{Ref: maps("b"), SendInitialEvents: true})
	s.event(5)

	for name, bad := range map[string]func(s *manyStream){
		"no id":      func(s *manyStream) { s.add(0, 1, &resourcev1.WatchRequest{Ref: maps("a")}) },
		"no command": func(s *manyStream) { s.send(&resourcev1.WatchManyRequest{}) },
		"an id twice": func(s *manyStream) {
			s.add(1, 0, &resourcev1.WatchRequest{Ref: maps("a")})
			s.add(1, 0, &resourcev1.WatchRequest{Ref: maps("a")})
		},
	} {
		s := watchMany(t, c)
		bad(s)
		if r, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v %v", name, r, err)
		}
	}
}

// TestWatchManyLifetime checks that the server ends the stream in an orderly way after its time.
func TestWatchManyLifetime(t *testing.T) {
	c := dial(t, serve(t, func(s *front.Service) { s.MinWatch = time.Millisecond }))
	s := watchMany(t, c)
	s.add(1, 0, &resourcev1.WatchRequest{Ref: maps("a")})
	for {
		if _, err := s.Recv(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestViews checks what each read returns in each view.
func TestViews(t *testing.T) {
	c := dial(t, serve(t))
	rpc := resourcev1.NewResourceServiceClient(c.Conn())
	made, err := client.For[*corev1.ConfigMap](c).Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "m", Labels: map[string]string{"l": "1"}}, Data: map[string]string{"k": "v"},
	})
	if err != nil || len(made.ManagedFields) == 0 {
		t.Fatal(made, err)
	}
	ref := maps("a")
	ref.Name = "m"
	for v, want := range map[resourcev1.View]func(url string, obj *corev1.ConfigMap) bool{
		resourcev1.View_VIEW_UNSPECIFIED: func(url string, obj *corev1.ConfigMap) bool {
			return url == "type.googleapis.com/k8s.io.api.core.v1.ConfigMap" && len(obj.ManagedFields) > 0 && obj.Data["k"] == "v"
		},
		resourcev1.View_VIEW_WITHOUT_MANAGED_FIELDS: func(url string, obj *corev1.ConfigMap) bool {
			return url == "type.googleapis.com/k8s.io.api.core.v1.ConfigMap" && len(obj.ManagedFields) == 0 && obj.Data["k"] == "v"
		},
		resourcev1.View_VIEW_METADATA: func(url string, obj *corev1.ConfigMap) bool {
			return url == "type.googleapis.com/k8s.io.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata" && len(obj.ManagedFields) > 0 && len(obj.Data) == 0
		},
	} {
		check := func(verb, url string, value []byte) {
			t.Helper()
			var obj corev1.ConfigMap
			if err := obj.Unmarshal(value); err != nil || !want(url, &obj) || obj.Labels["l"] != "1" || obj.ResourceVersion != made.ResourceVersion || obj.UID != made.UID {
				t.Errorf("%s in %v: %s %+v %v", verb, v, url, obj, err)
			}
		}
		got, err := rpc.Get(t.Context(), &resourcev1.GetRequest{Ref: ref, View: v})
		if err != nil {
			t.Fatal(err)
		}
		check("get", got.GetObject().GetTypeUrl(), got.GetObject().GetValue())
		list, err := rpc.List(t.Context(), &resourcev1.ListRequest{Ref: maps("a"), View: v})
		if err != nil {
			t.Fatal(err)
		}
		page, err := list.Recv()
		if err != nil {
			t.Fatal(err)
		}
		check("list", page.GetItems()[0].GetTypeUrl(), page.GetItems()[0].GetValue())
		watch, err := rpc.Watch(t.Context(), &resourcev1.WatchRequest{Ref: maps("a"), View: v})
		if err != nil {
			t.Fatal(err)
		}
		ev, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		check("watch", ev.GetObject().GetTypeUrl(), ev.GetObject().GetValue())
		s := watchMany(t, c)
		s.add(1, 1, &resourcev1.WatchRequest{Ref: maps("a"), View: v})
		ev = s.event(1)
		check("watch of many", ev.GetObject().GetTypeUrl(), ev.GetObject().GetValue())
	}
	if _, err := rpc.Get(t.Context(), &resourcev1.GetRequest{Ref: ref, View: 9}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("unknown view: %v", err)
	}
}

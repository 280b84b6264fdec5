// Package clienttest serves an empty cluster in memory, for tests of programs that use package
// client. It has every built-in kind, optimistic concurrency, finalizers, graceful deletion
// of pods, propagation policies as finalizers, status and scale subresources, binding,
// selectors, pagination, watches that can be cut, leaders' fences, and failures on demand.
// It passes the client's conformance suite, as the apiserver does.
//
// It has no defaults, no validation, no admission and no authorization, and Apply merges
// without owning fields: a test that needs those starts a cluster. It must never be linked
// into a program.
package clienttest

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"keelson.dev/proto/client"
	coordinationv1 "keelson.dev/proto/keelson/coordination/v1"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
)

// Start serves an empty cluster until the test ends, and returns a client of it.
func Start(t testing.TB) *client.Client {
	t.Helper()
	_, c := StartServer(t)
	return c
}

// StartServer is [Start] for tests that also control the server.
func StartServer(t testing.TB) (*Server, *client.Client) {
	t.Helper()
	s := NewServer()
	l := bufconn.Listen(1 << 20)
	stop := s.Serve(l)
	conn, err := grpc.NewClient("passthrough:///bufconn",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatalf("clienttest: %v", err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Errorf("clienttest: close: %v", err)
		}
		stop()
	})
	return s, client.New(conn, "clienttest")
}

// Serve serves connections of l in clear text until stop is called. stop closes l and returns
// when everything has ended.
func (s *Server) Serve(l net.Listener) (stop func()) {
	srv := grpc.NewServer(grpc.MaxRecvMsgSize(64<<20), grpc.MaxSendMsgSize(64<<20), grpc.UnaryInterceptor(s.intercept))
	resourcev1.RegisterResourceServiceServer(srv, s)
	coordinationv1.RegisterFenceServiceServer(srv, &fences{s: s})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(l)
	}()
	return func() {
		srv.Stop()
		<-done
	}
}

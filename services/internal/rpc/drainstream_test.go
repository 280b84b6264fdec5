package rpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	nodev1 "keelson.dev/proto/keelson/node/v1"
	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/internal/pacetest"
	"keelson.dev/services/internal/rpc"
)

// slow has calls that run while the server stops.
type slow struct {
	resourcev1.UnimplementedResourceServiceServer
	nodev1.UnimplementedTunnelServiceServer
	begun, finish chan struct{}
}

func (s *slow) Watch(_ *resourcev1.WatchRequest, stream resourcev1.ResourceService_WatchServer) error {
	if err := stream.Send(&resourcev1.WatchResponse{}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return status.FromContextError(stream.Context().Err()).Err()
}

func (s *slow) Connect(stream nodev1.TunnelService_ConnectServer) error {
	if err := stream.Send(&nodev1.ConnectResponse{}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

func (s *slow) Create(context.Context, *resourcev1.CreateRequest) (*resourcev1.CreateResponse, error) {
	s.begun <- struct{}{}
	<-s.finish
	return &resourcev1.CreateResponse{}, nil
}

func (s *slow) List(_ *resourcev1.ListRequest, stream resourcev1.ResourceService_ListServer) error {
	s.begun <- struct{}{}
	<-s.finish
	if err := stream.Context().Err(); err != nil {
		return err
	}
	return stream.Send(&resourcev1.ListResponse{})
}

// When a server stops, a watch ends in order, a tunnel as unavailable, and what was
// begun is answered; nothing of it takes until the server's patience ends.
func TestDrain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &slow{begun: make(chan struct{}, 2), finish: make(chan struct{})}
	server := rpc.NewServer(rpc.ServerConfig{Endless: func(method string) bool {
		return strings.HasSuffix(method, "/Watch") || strings.HasSuffix(method, "/Connect")
	}})
	resourcev1.RegisterResourceServiceServer(server, s)
	nodev1.RegisterTunnelServiceServer(server, s)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()

	conn, err := rpc.Dial(nil, []string{l.Addr().String()}, "test/1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	resources := resourcev1.NewResourceServiceClient(conn)
	watch, err := resources.Watch(within(t), &resourcev1.WatchRequest{})
	if err != nil {
		t.Fatal(err)
	}
	tunnel, err := nodev1.NewTunnelServiceClient(conn).Connect(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := tunnel.Recv(); err != nil {
		t.Fatal(err)
	}
	results := make(chan error, 2)
	go func() {
		_, err := resources.Create(within(t), &resourcev1.CreateRequest{})
		results <- err
	}()
	list, err := resources.List(within(t), &resourcev1.ListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	<-s.begun
	<-s.begun

	pace := pacetest.Start(t)
	began := time.Now()
	stop()
	if _, err := watch.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the watch ended with %v", err)
	}
	if _, err := tunnel.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the tunnel ended with %v", err)
	}
	close(s.finish)
	if err := <-results; err != nil {
		t.Errorf("a call that had begun: %v", err)
	}
	if _, err := list.Recv(); err != nil {
		t.Errorf("a list that had begun: %v", err)
	}
	if _, err := list.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the list ended with %v", err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if took := pace.Since(began); took > 4*time.Second {
		t.Errorf("it took %s", took)
	}
}

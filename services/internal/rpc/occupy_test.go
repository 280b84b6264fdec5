package rpc_test

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/internal/connlimit"
	"keelson.dev/services/internal/rpc"
)

// occupant takes all places of its connection, gives one back, and sends how many it had.
type occupant struct {
	resourcev1.UnimplementedResourceServiceServer
	ended chan error
}

func (o *occupant) WatchMany(stream grpc.BidiStreamingServer[resourcev1.WatchManyRequest, resourcev1.WatchManyResponse]) error {
	var leaves []func()
	for {
		leave, err := rpc.Occupy(stream.Context())
		if err != nil {
			o.ended <- err
			break
		}
		leaves = append(leaves, leave)
	}
	leaves[0]()
	if leave, err := rpc.Occupy(stream.Context()); err != nil {
		o.ended <- err
	} else {
		leaves[0] = leave
	}
	if err := stream.Send(&resourcev1.WatchManyResponse{Id: uint32(len(leaves))}); err != nil { //nolint:gosec // some thousand
		return err
	}
	_, err := stream.Recv() // until the client ends the stream
	for _, leave := range leaves {
		leave()
	}
	return err
}

// TestOccupiedPlacesAreCalls checks that what a stream does in the place of calls counts as calls
// of its connection, and no longer than it lasts.
func TestOccupiedPlacesAreCalls(t *testing.T) {
	o := &occupant{ended: make(chan error, 4)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := rpc.NewServer(rpc.ServerConfig{Authenticate: byName})
	resourcev1.RegisterResourceServiceServer(server, o)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, connlimit.Wrap(l, connlimit.Limits{Name: "test"})) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	client := resourcev1.NewResourceServiceClient(open(t, l.Addr().String()))
	for range 2 {
		stream, err := client.WatchMany(as(t, "user"))
		if err != nil {
			t.Fatal(err)
		}
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if r.GetId() != 999 { // and the stream itself
			t.Errorf("%d places", r.GetId())
		}
		if err := <-o.ended; status.Code(err) != codes.ResourceExhausted || len(o.ended) > 0 {
			t.Errorf("the end of the places: %v", err)
		}
		if _, err := client.Get(as(t, "user"), &resourcev1.GetRequest{}); status.Code(err) != codes.ResourceExhausted {
			t.Errorf("a call without a place: %v", err)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err == nil {
			t.Error("the stream goes on")
		}
	}
}

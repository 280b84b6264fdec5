package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/internal/rpc"
	"keelson.dev/services/internal/telemetry"
)

// byName takes the metadata key user for the caller's name; without, the caller is a
// stranger.
func byName(ctx context.Context, _ string) (context.Context, rpc.Caller, error) {
	name := strings.Join(metadata.ValueFromIncomingContext(ctx, "user"), "")
	switch name {
	case "":
		return ctx, rpc.Caller{}, nil
	case "impostor":
		return ctx, rpc.Caller{}, status.Error(codes.Unauthenticated, "who are you?")
	}
	return ctx, rpc.Caller{Name: name, Class: rpc.User}, nil
}

func as(t *testing.T, user string) context.Context {
	return metadata.AppendToOutgoingContext(within(t), "user", user)
}

// open is a plain connection, without the limits and retries of a service's.
func open(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// raw sends bytes as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error)      { return v.([]byte), nil }
func (raw) Unmarshal(data []byte, v any) error { *v.(*[]byte) = bytes.Clone(data); return nil }
func (raw) Name() string                       { return "proto" }

// TestRefusedBeforeAMessageIsRead calls unary methods and never sends the message.
func TestRefusedBeforeAMessageIsRead(t *testing.T) {
	address, _ := serve(t, rpc.ServerConfig{Authenticate: byName}, &backend{})
	for _, method := range []string{
		resourcev1.ResourceService_Create_FullMethodName, resourcev1.ResourceService_Watch_FullMethodName,
		healthv1.Health_Check_FullMethodName, "/no.such.Service/Method",
	} {
		stream, err := open(t, address).NewStream(as(t, "impostor"), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(&resourcev1.CreateResponse{}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s: %v", method, err)
		}
	}
}

func TestStrangersSendLittle(t *testing.T) {
	b := &backend{}
	address, _ := serve(t, rpc.ServerConfig{Authenticate: byName}, b)
	c := resourcev1.NewResourceServiceClient(open(t, address))
	fits := &resourcev1.CreateRequest{Options: &resourcev1.WriteOptions{FieldManager: strings.Repeat("x", rpc.StrangerMessage()/2)}}
	large := &resourcev1.CreateRequest{Options: &resourcev1.WriteOptions{FieldManager: strings.Repeat("x", rpc.StrangerMessage())}}
	if _, err := c.Create(within(t), fits); err != nil {
		t.Error(err)
	}
	if _, err := c.Create(within(t), large); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("large: %v", err)
	}
	if _, err := c.Create(within(t), fits, grpc.UseCompressor(gzip.Name)); status.Code(err) != codes.Unimplemented {
		t.Errorf("compressed: %v", err)
	}
	if n := b.creates.Load(); n != 1 {
		t.Errorf("%d calls reached the service", n)
	}
	for name, call := range map[string]grpc.CallOption{"large": grpc.EmptyCallOption{}, "compressed": grpc.UseCompressor(gzip.Name)} {
		if _, err := c.Create(as(t, "user"), large, call); err != nil {
			t.Errorf("%s message of a user: %v", name, err)
		}
	}
}

// TestMessagesAreBoundedWhenDecoded sends messages that are small on the wire only.
func TestMessagesAreBoundedWhenDecoded(t *testing.T) {
	b := &backend{}
	address, _ := serve(t, rpc.ServerConfig{Authenticate: byName}, b)
	c := resourcev1.NewResourceServiceClient(open(t, address))
	bomb := &resourcev1.CreateRequest{Options: &resourcev1.WriteOptions{FieldManager: strings.Repeat("x", rpc.MaxMessage+1)}}
	if _, err := c.Create(as(t, "user"), bomb, grpc.UseCompressor(gzip.Name)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message that inflates to %d bytes: %v", rpc.MaxMessage+1, err)
	}
	var reply []byte
	empty := bytes.Repeat([]byte{1<<3 | 2, 0}, rpc.MaxElements+1) // CommitRequest.writes
	err := open(t, address).Invoke(as(t, "user"), resourcev1.ResourceService_Commit_FullMethodName, empty, &reply, grpc.ForceCodec(raw{}))
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("%d empty elements: %v", rpc.MaxElements+1, err)
	}
}

func TestSlowMessagesEnd(t *testing.T) {
	rpc.Impatient(t, 20*time.Millisecond)
	address, _ := serve(t, rpc.ServerConfig{Authenticate: byName}, &backend{})
	stream, err := open(t, address).NewStream(within(t), &grpc.StreamDesc{ClientStreams: true}, resourcev1.ResourceService_Create_FullMethodName)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&resourcev1.CreateResponse{}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a stranger's message that never comes: %v", err)
	}
}

func TestStrangersInFlightAreBounded(t *testing.T) {
	address, _ := serve(t, rpc.ServerConfig{Authenticate: byName}, &backend{})
	conn := open(t, address)
	var refused error
	for range 1000 { // health watches stay open
		w, err := healthv1.NewHealthClient(conn).Watch(within(t), &healthv1.HealthCheckRequest{})
		if err == nil {
			_, err = w.Recv()
		}
		if err != nil {
			refused = err
			break
		}
	}
	if status.Code(refused) != codes.ResourceExhausted {
		t.Fatalf("1000 health watches of strangers: %v", refused)
	}
	if _, err := healthv1.NewHealthClient(conn).Check(within(t), &healthv1.HealthCheckRequest{}); err != nil {
		t.Errorf("a health check beside them: %v", err)
	}
	if _, err := resourcev1.NewResourceServiceClient(conn).Get(as(t, "user"), &resourcev1.GetRequest{}); err != nil {
		t.Errorf("a user beside them: %v", err)
	}
}

// TestHealthWatchesAreShared checks that one client address with as many health watches as there
// are places does not keep another from watching.
func TestHealthWatchesAreShared(t *testing.T) {
	const places = 128
	address, _ := serve(t, rpc.ServerConfig{Authenticate: byName}, &backend{})
	from := func(ip string) healthv1.HealthClient {
		dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, a string) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", a) }))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return healthv1.NewHealthClient(conn)
	}
	watch := func(c healthv1.HealthClient) (healthv1.Health_WatchClient, error) {
		w, err := c.Watch(within(t), &healthv1.HealthCheckRequest{})
		if err == nil {
			_, err = w.Recv()
		}
		return w, err
	}
	greedy, other := from("127.0.0.1"), from("127.0.0.2")
	var oldest healthv1.Health_WatchClient
	for i := range places {
		w, err := watch(greedy)
		if err != nil {
			t.Fatalf("watch %d: %v", i, err)
		}
		if oldest == nil {
			oldest = w
		}
	}
	if _, err := watch(greedy); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a watch more than there are places: %v", err)
	}
	for i := range places / 2 {
		if _, err := watch(other); err != nil {
			t.Fatalf("watch %d of another client: %v", i, err)
		}
	}
	if _, err := watch(other); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a watch above the other client's half: %v", err)
	}
	if _, err := oldest.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the oldest watch of the first client: %v, want it ended", err)
	}
}

// TestOneRequestMessage keeps gRPC's own rules for methods with one request.
func TestOneRequestMessage(t *testing.T) {
	address, _ := serve(t, rpc.ServerConfig{Authenticate: byName}, &backend{})
	for n, want := range map[int]codes.Code{0: codes.Internal, 1: codes.OK, 2: codes.Internal} {
		stream, err := open(t, address).NewStream(as(t, "user"), &grpc.StreamDesc{ClientStreams: true}, resourcev1.ResourceService_Create_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		for range n {
			if err := stream.SendMsg(&resourcev1.CreateRequest{}); err != nil && !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(&resourcev1.CreateResponse{}); status.Code(err) != want {
			t.Errorf("%d messages: %v, want %s", n, err, want)
		}
	}
}

// TestTracesAreForAuthenticatedCallers sends a traceparent as several callers.
func TestTracesAreForAuthenticatedCallers(t *testing.T) {
	exporter := tracetest.NewInMemoryExporter()
	tel, err := telemetry.Start(context.Background(), telemetry.Config{Service: "svc", Exporter: exporter})
	if err != nil {
		t.Fatal(err)
	}
	defer tel.Shutdown(context.Background())
	root := func(string) bool { return true }
	address, stop := serve(t, rpc.ServerConfig{Authenticate: byName, Root: root}, &backend{})
	c := resourcev1.NewResourceServiceClient(open(t, address))
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for _, user := range []string{"", "impostor", "user"} {
		ctx := within(t)
		if user != "" {
			ctx = as(t, user)
		}
		_, _ = c.Create(ctx, &resourcev1.CreateRequest{}) // with a trace of its own, at most
		_, _ = c.Create(metadata.AppendToOutgoingContext(ctx, "traceparent", parent), &resourcev1.CreateRequest{})
	}
	stop() // every span has ended
	if err := tel.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	below := 0
	for _, s := range exporter.GetSpans() {
		if s.SpanContext.TraceID().String() == parent[3:35] {
			below++
		}
	}
	if n := len(exporter.GetSpans()); n != 2 || below != 1 {
		t.Errorf("%d spans, %d of them of the trace: want the user's two, one of them", n, below)
	}
}

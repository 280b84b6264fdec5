package rpc_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	resourcev1 "keelson.dev/proto/keelson/resource/v1"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/identity/identitytest"
	"keelson.dev/services/internal/rpc"
	"keelson.dev/services/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend answers with its name, or as the test sets it.
type backend struct {
	resourcev1.UnimplementedResourceServiceServer
	name     string
	gets     atomic.Int64
	creates  atomic.Int64
	unhappy  atomic.Int64 // how many calls fail with Unavailable
	lastPeer atomic.Value
}

func (b *backend) Get(ctx context.Context, r *resourcev1.GetRequest) (*resourcev1.GetResponse, error) {
	b.gets.Add(1)
	if p, ok := peer.FromContext(ctx); ok {
		b.lastPeer.Store(p.Addr.String())
	}
	if r.GetRef().GetName() == "panic" {
		panic("a bug")
	}
	if b.unhappy.Add(-1) >= 0 {
		return nil, status.Error(codes.Unavailable, "going down")
	}
	return &resourcev1.GetResponse{}, nil
}

func (b *backend) List(r *resourcev1.ListRequest, s grpc.ServerStreamingServer[resourcev1.ListResponse]) error {
	panic("a bug in a stream")
}

func (b *backend) Create(context.Context, *resourcev1.CreateRequest) (*resourcev1.CreateResponse, error) {
	b.creates.Add(1)
	if b.unhappy.Add(-1) >= 0 {
		return nil, status.Error(codes.Unavailable, "going down")
	}
	return &resourcev1.CreateResponse{}, nil
}

// serve runs a server until the test ends and returns its address and a stop.
func serve(t testing.TB, cfg rpc.ServerConfig, b *backend) (address string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewServer(cfg)
	resourcev1.RegisterResourceServiceServer(s, b)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	var once atomic.Bool
	stop = func() {
		if once.Swap(true) {
			return
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	}
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

func dial(t testing.TB, id *identity.Source, endpoints ...string) resourcev1.ResourceServiceClient {
	t.Helper()
	conn, err := rpc.Dial(id, endpoints, "test/1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return resourcev1.NewResourceServiceClient(conn)
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestMutualTLS(t *testing.T) {
	ca, other := identitytest.NewCA(t), identitytest.NewCA(t)
	address, _ := serve(t, rpc.ServerConfig{Identity: ca.Source(t, "kube-apiserver"), RequireClientCert: true}, &backend{})
	if _, err := dial(t, ca.Source(t, "me"), address).Get(within(t), &resourcev1.GetRequest{}); err != nil {
		t.Fatal(err)
	}
	_, err := dial(t, other.Source(t, "stranger"), address).Get(within(t), &resourcev1.GetRequest{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "unknown authority") {
		t.Fatalf("foreign CA: %v", err)
	}
	if _, err := dial(t, nil, address).Get(within(t), &resourcev1.GetRequest{}); status.Code(err) != codes.Unavailable {
		t.Fatalf("without TLS: %v", err)
	}
}

func TestRenewedIdentityIsUsedByTheNextConnection(t *testing.T) {
	before, after := identitytest.NewCA(t), identitytest.NewCA(t)
	dir := t.TempDir()
	before.Write(t, dir, "me")
	id, err := identity.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	address, _ := serve(t, rpc.ServerConfig{Identity: after.Source(t, "kube-apiserver"), RequireClientCert: true}, &backend{})
	c := dial(t, id, address)
	if _, err := c.Get(within(t), &resourcev1.GetRequest{}); err == nil {
		t.Fatal("a server of another CA was trusted")
	}
	after.Write(t, dir, "me") // new CA, new certificate, same connection object
	eventually(t, func() error {
		_, err := c.Get(within(t), &resourcev1.GetRequest{})
		return err
	})
}

func TestBalancesAndSurvivesALostEndpoint(t *testing.T) {
	ca := identitytest.NewCA(t)
	cfg := rpc.ServerConfig{Identity: ca.Source(t, "kube-apiserver")}
	a, b := &backend{name: "a"}, &backend{name: "b"}
	addressA, stopA := serve(t, cfg, a)
	addressB, _ := serve(t, cfg, b)
	c := dial(t, ca.Source(t, "me"), addressA, addressB)
	eventually(t, func() error {
		if _, err := c.Get(within(t), &resourcev1.GetRequest{}); err != nil {
			return err
		}
		if a.gets.Load() == 0 || b.gets.Load() == 0 {
			return errors.New("one endpoint got no call")
		}
		return nil
	})
	stopA()
	for range 50 { // none may fail: reads are repeated at the other
		if _, err := c.Get(within(t), &resourcev1.GetRequest{}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRetriesReadsOnly(t *testing.T) {
	b := &backend{}
	address, _ := serve(t, rpc.ServerConfig{}, b)
	c := dial(t, nil, address)
	b.unhappy.Store(2)
	if _, err := c.Get(within(t), &resourcev1.GetRequest{}); err != nil || b.gets.Load() != 3 {
		t.Fatalf("get: %v after %d attempts, want success at the third", err, b.gets.Load())
	}
	b.unhappy.Store(2)
	if _, err := c.Create(within(t), &resourcev1.CreateRequest{}); status.Code(err) != codes.Unavailable || b.creates.Load() != 1 {
		t.Fatalf("create: %v after %d attempts, want Unavailable after one", err, b.creates.Load())
	}
}

func TestNobodyThereIsUnavailableAtOnce(t *testing.T) {
	// Not a port that was free a moment ago: it may be another test's by now.
	if _, err := dial(t, nil, "127.0.0.1:1").Create(within(t), &resourcev1.CreateRequest{}); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
}

func TestPanicsAreInternalErrors(t *testing.T) {
	address, _ := serve(t, rpc.ServerConfig{}, &backend{})
	c := dial(t, nil, address)
	_, err := c.Get(within(t), &resourcev1.GetRequest{Ref: &resourcev1.Ref{Name: "panic"}})
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "a bug") {
		t.Fatalf("unary: %v", err)
	}
	stream, err := c.List(within(t), &resourcev1.ListRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Internal {
		t.Fatalf("stream: %v", err)
	}
	if _, err := c.Get(within(t), &resourcev1.GetRequest{}); err != nil {
		t.Fatalf("the server did not stay: %v", err)
	}
}

func TestMessagesAreBounded(t *testing.T) {
	address, _ := serve(t, rpc.ServerConfig{}, &backend{})
	c := dial(t, nil, address)
	huge := &resourcev1.GetRequest{ResourceVersion: strings.Repeat("x", rpc.MaxMessage+1)}
	if _, err := c.Get(within(t), huge); status.Code(err) != codes.ResourceExhausted {
		t.Fatal(err)
	}
}

func TestGarbageCostsOnlyItsConnection(t *testing.T) {
	ca := identitytest.NewCA(t)
	address, _ := serve(t, rpc.ServerConfig{Identity: ca.Source(t, "kube-apiserver")}, &backend{})
	me := ca.Source(t, "me")
	for name, payload := range map[string][]byte{
		"no TLS":         []byte("GET / HTTP/1.0\r\n\r\n"),
		"random":         bytes.Repeat([]byte{0xff}, 1<<16),
		"hostile length": append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1),
	} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		if name == "hostile length" { // inside of TLS
			c := me.ClientTLS("localhost")
			c.NextProtos = []string{"h2"}
			conn = tls.Client(conn, c)
		}
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		conn.Write(payload)
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the server kept the connection", name)
		}
		conn.Close()
	}
	if _, err := dial(t, me, address).Get(within(t), &resourcev1.GetRequest{}); err != nil {
		t.Fatalf("the server did not stay: %v", err)
	}
}

func TestHealth(t *testing.T) {
	address, stop := serve(t, rpc.ServerConfig{}, &backend{})
	conn, err := rpc.Dial(nil, []string{address}, "test/1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	res, err := healthv1.NewHealthClient(conn).Check(within(t), &healthv1.HealthCheckRequest{})
	if err != nil || res.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Fatal(res, err)
	}
	stop()
}

func TestTracing(t *testing.T) {
	exporter := tracetest.NewInMemoryExporter()
	tel, err := telemetry.Start(context.Background(), telemetry.Config{Service: "svc", Exporter: exporter})
	if err != nil {
		t.Fatal(err)
	}
	defer tel.Shutdown(context.Background())
	address, _ := serve(t, rpc.ServerConfig{Root: func(m string) bool { return strings.HasSuffix(m, "/Create") }}, &backend{})
	c := dial(t, nil, address)

	const client = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	tests := []struct {
		name  string
		call  func(ctx context.Context) error
		ctx   context.Context
		spans int
		trace string
	}{
		{"a read makes no trace", func(ctx context.Context) error { _, err := c.Get(ctx, &resourcev1.GetRequest{}); return err }, within(t), 0, ""},
		{"a read below a trace belongs to it", func(ctx context.Context) error { _, err := c.Get(ctx, &resourcev1.GetRequest{}); return err },
			telemetry.ContextWithTraceparent(within(t), client), 2, "0af7651916cd43dd8448eb211c80319c"},
		{"a write below a trace belongs to it", func(ctx context.Context) error {
			_, err := c.Create(ctx, &resourcev1.CreateRequest{})
			return err
		}, telemetry.ContextWithTraceparent(within(t), client), 2, "0af7651916cd43dd8448eb211c80319c"},
		{"a write from a client without tracing begins a trace", func(context.Context) error {
			return bare(address, func(ctx context.Context, c resourcev1.ResourceServiceClient) error {
				_, err := c.Create(ctx, &resourcev1.CreateRequest{})
				return err
			})
		}, within(t), 1, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			exporter.Reset()
			if err := tt.call(tt.ctx); err != nil {
				t.Fatal(err)
			}
			eventually(t, func() error { // the server's span ends just after the answer
				tel.Flush(context.Background())
				if got := len(exporter.GetSpans()); got < tt.spans {
					return fmt.Errorf("%d spans, want %d", got, tt.spans)
				}
				return nil
			})
			spans := exporter.GetSpans()
			if len(spans) != tt.spans {
				t.Fatalf("%d spans, want %d", len(spans), tt.spans)
			}
			for _, s := range spans {
				if tt.trace != "" && s.SpanContext.TraceID().String() != tt.trace {
					t.Errorf("%s: trace %s", s.Name, s.SpanContext.TraceID())
				}
			}
		})
	}
}

// bare calls as a client without tracing.
func bare(address string, call func(context.Context, resourcev1.ResourceServiceClient) error) error {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return call(ctx, resourcev1.NewResourceServiceClient(conn))
}

func TestDialErrors(t *testing.T) {
	for _, endpoints := range [][]string{nil, {"no-port"}} {
		if _, err := rpc.Dial(nil, endpoints, "x"); err == nil {
			t.Errorf("%v was dialled", endpoints)
		}
	}
}

func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

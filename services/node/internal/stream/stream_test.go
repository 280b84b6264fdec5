package stream

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	nodev1 "keelson.dev/proto/keelson/node/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// apiserver is the other side of the tunnel. It passes each control stream and session to
// the test.
type apiserver struct {
	nodev1.UnimplementedTunnelServiceServer
	controls chan *controlStream
	sessions chan nodev1.TunnelService_SessionServer
	over     chan struct{}
	end      chan struct{} // ends a session without an error; may be nil
}

type controlStream struct {
	nodev1.TunnelService_ConnectServer
	end chan error
}

func (a *apiserver) Connect(stream nodev1.TunnelService_ConnectServer) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	c := &controlStream{stream, make(chan error)}
	select {
	case a.controls <- c:
	case <-a.over:
		return nil
	}
	select {
	case err := <-c.end:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

func (a *apiserver) Session(stream nodev1.TunnelService_SessionServer) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	select {
	case a.sessions <- stream:
	case <-a.over:
	}
	select {
	case <-a.end:
	case <-stream.Context().Done():
	}
	return nil
}

// echo serves a session by sending back what it receives.
type echo struct{}

func (echo) Check(*nodev1.Open) error { return nil }

func (echo) Serve(_ context.Context, _ *nodev1.Open, s *Session) error {
	for {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		if _, err := s.Writer(nodev1.Channel_CHANNEL_STDOUT).Write(m.GetData().GetPayload()); err != nil {
			return err
		}
	}
}

// next waits for a value.
func next[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(time.Minute):
		t.Fatal("timed out")
		panic("unreachable")
	}
}

// wantEcho sends text to a session and expects it back.
func wantEcho(t *testing.T, s nodev1.TunnelService_SessionServer, text string) {
	t.Helper()
	if err := s.Send(&nodev1.SessionResponse{Message: &nodev1.SessionResponse_Data{Data: &nodev1.Data{Payload: []byte(text)}}}); err != nil {
		t.Fatal(err)
	}
	if m, err := s.Recv(); err != nil || string(m.GetData().GetPayload()) != text {
		t.Fatalf("%v, %v", m, err)
	}
}

func TestNewCertificateIsPresented(t *testing.T) {
	api := &apiserver{controls: make(chan *controlStream), sessions: make(chan nodev1.TunnelService_SessionServer), over: make(chan struct{})}
	l := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	nodev1.RegisterTunnelServiceServer(server, api)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	var leaf atomic.Pointer[x509.Certificate]
	leaf.Store(&x509.Certificate{})
	var dials atomic.Int32
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		_ = Run(ctx, Config{
			Node: "n1", Endpoints: []string{"a"}, Handler: echo{}, Certificate: leaf.Load, lookEvery: 5 * time.Millisecond,
			Dial: func(string) (*grpc.ClientConn, error) {
				dials.Add(1)
				return grpc.NewClient("passthrough:///a",
					grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return l.Dial() }),
					grpc.WithTransportCredentials(insecure.NewCredentials()))
			},
		})
	})
	defer wg.Wait()
	defer server.Stop()
	defer close(api.over)
	defer cancel()

	ask := func(c *controlStream) nodev1.TunnelService_SessionServer {
		t.Helper()
		if err := c.Send(&nodev1.ConnectResponse{Message: &nodev1.ConnectResponse_Open{Open: &nodev1.Open{SessionId: "s"}}}); err != nil {
			t.Fatal(err)
		}
		s := next(t, api.sessions)
		wantEcho(t, s, "begin")
		return s
	}
	first := next(t, api.controls)
	old := ask(first)
	leaf.Store(&x509.Certificate{})
	second := next(t, api.controls)
	if n := dials.Load(); n != 2 {
		t.Errorf("%d connections, want one per certificate", n)
	}
	// The first stream lasts until the apiserver has the second one.
	if first.Context().Err() != nil {
		t.Error("the control stream was closed before it was replaced")
	}
	first.end <- status.Error(codes.Aborted, "the node has reconnected")
	ask(second)
	wantEcho(t, old, "the session goes on")

	// An expired control stream is opened again; its session continues.
	second.end <- status.Error(codes.Unauthenticated, "expired")
	third := next(t, api.controls)
	ask(third)
	wantEcho(t, old, "and on")
}

func TestInternalErrorPrefixIsNotRepeated(t *testing.T) {
	for _, err := range []error{
		errors.New("cannot exec"),
		errors.New("Internal error occurred: cannot exec"), // the runtime's error as client-go returns it
		apierrors.NewInternalError(errors.New("cannot exec")),
		apierrors.NewInternalError(apierrors.NewInternalError(errors.New("cannot exec"))),
	} {
		var st metav1.Status
		if uerr := st.Unmarshal(encode(err)); uerr != nil {
			t.Fatal(uerr)
		}
		if st.Message != "Internal error occurred: cannot exec" || st.Reason != metav1.StatusReasonInternalError || st.Status != metav1.StatusFailure {
			t.Errorf("%q: status %+v", err, st)
		}
	}
}

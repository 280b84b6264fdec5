package stream

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	nodev1 "keelson.dev/proto/keelson/node/v1"
)

// connected runs a node with a handler and returns its control stream and what opens a session.
func connected(t *testing.T, h Handler) func(*nodev1.Open) nodev1.TunnelService_SessionServer {
	t.Helper()
	open, _ := endable(t, h)
	return open
}

// endable is connected, and returns what ends a session without an error.
func endable(t *testing.T, h Handler) (open func(*nodev1.Open) nodev1.TunnelService_SessionServer, end chan<- struct{}) {
	t.Helper()
	api := &apiserver{
		controls: make(chan *controlStream), sessions: make(chan nodev1.TunnelService_SessionServer), over: make(chan struct{}), end: make(chan struct{}),
	}
	l := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	nodev1.RegisterTunnelServiceServer(server, api)
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() {
		_ = Run(ctx, Config{
			Node: "n1", Endpoints: []string{"a"}, Handler: h,
			Dial: func(string) (*grpc.ClientConn, error) {
				return grpc.NewClient("passthrough:///a",
					grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return l.Dial() }),
					grpc.WithTransportCredentials(insecure.NewCredentials()))
			},
		})
	})
	t.Cleanup(func() {
		cancel()
		close(api.over)
		server.Stop()
		wg.Wait()
	})
	control := next(t, api.controls)
	return func(open *nodev1.Open) nodev1.TunnelService_SessionServer {
		if err := control.Send(&nodev1.ConnectResponse{Message: &nodev1.ConnectResponse_Open{Open: open}}); err != nil {
			t.Fatal(err)
		}
		return next(t, api.sessions)
	}, api.end
}

// output reads a session until its exit.
func output(t *testing.T, s nodev1.TunnelService_SessionServer) (data []byte, exit *nodev1.Exit) {
	t.Helper()
	for {
		m, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if exit := m.GetExit(); exit != nil {
			return data, exit
		}
		data = append(data, m.GetData().GetPayload()...)
	}
}

func TestMeasure(t *testing.T) {
	want := &nodev1.Usage{Node: &nodev1.Measurement{CpuNanoCores: 7}}
	for range 2000 { // more than one frame
		want.Pods = append(want.Pods, &nodev1.PodUsage{Namespace: "namespace", Name: strings.Repeat("n", 60)})
	}
	var failure error
	open := connected(t, &Backend{Usage: func(_ context.Context, maxAge time.Duration) (*nodev1.Usage, error) {
		if maxAge != 5*time.Second {
			t.Errorf("age %s", maxAge)
		}
		return want, failure
	}})
	measure := &nodev1.Open{SessionId: "s", Target: &nodev1.Open_Measure{Measure: &nodev1.Measure{MaxAgeSeconds: 5}}}
	data, exit := output(t, open(measure))
	got := &nodev1.Usage{}
	if err := proto.Unmarshal(data, got); err != nil || !proto.Equal(got, want) || len(exit.GetStatus()) > 0 {
		t.Errorf("%d bytes, %v, %v", len(data), err, exit)
	}
	failure = errors.New("the runtime is down")
	_, exit = output(t, open(measure))
	var st metav1.Status
	if err := st.Unmarshal(exit.GetStatus()); err != nil || st.Reason != metav1.StatusReasonServiceUnavailable || st.Message != "the runtime is down" {
		t.Errorf("%v, %+v", err, st)
	}
	for _, age := range []int32{-1, 61} {
		err := (&Backend{}).Check(&nodev1.Open{Target: &nodev1.Open_Measure{Measure: &nodev1.Measure{MaxAgeSeconds: age}}})
		if err == nil {
			t.Errorf("an age of %d s is accepted", age)
		}
	}
}

func TestAPIConnection(t *testing.T) {
	var far net.Conn
	open := connected(t, &Backend{API: func(context.Context) (net.Conn, error) {
		near, other := net.Pipe()
		far = other
		go func() {
			_, _ = io.ReadFull(other, make([]byte, 3))
			_, _ = io.WriteString(other, "answer")
			_ = other.Close()
		}()
		return near, nil
	}})
	s := open(&nodev1.Open{SessionId: "s", Target: &nodev1.Open_Api{Api: &nodev1.Api{}}})
	if err := s.Send(&nodev1.SessionResponse{Message: &nodev1.SessionResponse_Data{Data: &nodev1.Data{Payload: []byte("GET")}}}); err != nil {
		t.Fatal(err)
	}
	if data, exit := output(t, s); string(data) != "answer" || len(exit.GetStatus()) > 0 {
		t.Errorf("%q, %v", data, exit)
	}
	_ = far.Close()
}

// TestSessionEndsWithItsClient checks that a session that the apiserver ends holds nothing any more: its
// connection is closed although the other side sends and closes nothing, and after a half-close.
func TestSessionEndsWithItsClient(t *testing.T) {
	dialed := make(chan net.Conn, 1)
	open, end := endable(t, &Backend{API: func(context.Context) (net.Conn, error) {
		near, far := net.Pipe()
		dialed <- far
		return near, nil
	}})
	for _, half := range []bool{false, true} {
		s := open(&nodev1.Open{SessionId: "s", Target: &nodev1.Open_Api{Api: &nodev1.Api{}}})
		far := next(t, dialed)
		if half {
			if err := s.Send(&nodev1.SessionResponse{Message: &nodev1.SessionResponse_CloseChannel{CloseChannel: nodev1.Channel_CHANNEL_STDIN}}); err != nil {
				t.Fatal(err)
			}
		}
		end <- struct{}{}
		if err := far.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		if _, err := far.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("half-closed before: %t: %v, want that the node closes the connection", half, err)
		}
		_ = far.Close()
	}
}

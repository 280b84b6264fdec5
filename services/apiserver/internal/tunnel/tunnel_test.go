package tunnel_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	grpcstatus "google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/tunnel"
	"keelson.dev/services/apiserver/internal/tunnel/tunneltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(t *testing.T, cfg tunnel.Config) (*tunnel.Server, nodev1.TunnelServiceClient) {
	t.Helper()
	s := tunnel.New(cfg)
	return s, tunneltest.Serve(t, s)
}

// eventually polls a condition for a bounded time.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(60 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("timed out: %s", what)
		}
	}
}

func connected(t *testing.T, s *tunnel.Server, node string) {
	t.Helper()
	eventually(t, node+" is connected", func() bool { return s.Connected(node) })
}

func exec(command ...string) *nodev1.Open {
	return &nodev1.Open{Target: &nodev1.Open_Exec{Exec: &nodev1.Exec{Command: command}}}
}

func echo(open *nodev1.Open, s tunneltest.Session) {
	for {
		m, err := s.Recv()
		if err != nil {
			return
		}
		switch m := m.GetMessage().(type) {
		case *nodev1.SessionResponse_Data:
			_ = s.Say(nodev1.Channel_CHANNEL_STDOUT, string(m.Data.GetPayload()))
		case *nodev1.SessionResponse_Resize:
			_ = s.Say(nodev1.Channel_CHANNEL_STDERR, fmt.Sprintf("%dx%d", m.Resize.GetWidth(), m.Resize.GetHeight()))
		case *nodev1.SessionResponse_CloseChannel:
			_ = s.Exit(7, nil)
			return
		}
	}
}

// ways are the ways to reach a node. asked is the apiserver that opens sessions, holder the one
// that the node is connected to, and c the node's client of holder.
var ways = map[string]func(*testing.T, tunnel.Config) (asked, holder *tunnel.Server, c nodev1.TunnelServiceClient){
	"directly": func(t *testing.T, cfg tunnel.Config) (asked, holder *tunnel.Server, c nodev1.TunnelServiceClient) {
		s, c := start(t, cfg)
		return s, s, c
	},
	"through a peer": func(t *testing.T, cfg tunnel.Config) (asked, holder *tunnel.Server, c nodev1.TunnelServiceClient) {
		holder, c = start(t, cfg)
		other, _ := start(t, cfg) // without a node
		allowAll := func(context.Context) error { return nil }
		peers := []nodev1.RelayServiceClient{tunneltest.ServeRelay(t, other.Relay(allowAll)), tunneltest.ServeRelay(t, holder.Relay(allowAll))}
		cfg.Peers = func() []nodev1.RelayServiceClient { return peers }
		return tunnel.New(cfg), holder, c
	},
}

func each(t *testing.T, cfg tunnel.Config, test func(t *testing.T, s, holder *tunnel.Server, c nodev1.TunnelServiceClient)) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			s, holder, c := way(t, cfg)
			test(t, s, holder, c)
		})
	}
}

func TestSession(t *testing.T) { each(t, tunnel.Config{}, testSession) }

func testSession(t *testing.T, s, holder *tunnel.Server, c nodev1.TunnelServiceClient) {
	tunneltest.Connect(t, c, "n1", nil, echo)
	connected(t, holder, "n1")
	session, err := s.Open(context.Background(), "n1", exec("cat"))
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if err := session.Resize(80, 24); err != nil {
		t.Fatal(err)
	}
	large := strings.Repeat("x", 3*tunnel.MaxData+1)
	go func() { _ = session.Input(nodev1.Channel_CHANNEL_STDIN, strings.NewReader(large)) }()
	var out, errOut bytes.Buffer
	err = session.Output(&out, &errOut)
	var exit *tunnel.ExitError
	if !errors.As(err, &exit) || exit.Code != 7 {
		t.Errorf("exit: %v", err)
	}
	if out.String() != large || errOut.String() != "80x24" {
		t.Errorf("got %d bytes and %q", out.Len(), errOut.String())
	}
}

func TestOpenFailures(t *testing.T) {
	each(t, tunnel.Config{OpenTimeout: time.Minute, MaxSessions: 1}, testOpenFailures)
}

func TestANodeThatDoesNotAnswer(t *testing.T) {
	each(t, tunnel.Config{OpenTimeout: 500 * time.Millisecond, MaxSessions: 1}, func(t *testing.T, s, holder *tunnel.Server, c nodev1.TunnelServiceClient) {
		silent(t, c, "silent")
		connected(t, holder, "silent")
		for range 2 { // also: a timeout releases the session
			if _, err := s.Open(context.Background(), "silent", exec()); !errors.Is(err, tunnel.ErrTimeout) {
				t.Errorf("node that does not answer: %v", err)
			}
		}
	})
}

func testOpenFailures(t *testing.T, s, holder *tunnel.Server, c nodev1.TunnelServiceClient) {
	ctx := context.Background()
	if _, err := s.Open(ctx, "none", exec()); !errors.Is(err, tunnel.ErrNotConnected) {
		t.Errorf("unknown node: %v", err)
	}
	tunneltest.Connect(t, c, "refusing", func(*nodev1.Open) *metav1.Status {
		st := apierrors.NewBadRequest("container is waiting").Status()
		return &st
	}, nil)
	connected(t, holder, "refusing")
	for range 3 { // a refusal releases the session
		if _, err := s.Open(ctx, "refusing", exec()); !apierrors.IsBadRequest(err) || err.Error() != "container is waiting" {
			t.Errorf("refused: %v", err)
		}
	}
	tunneltest.Connect(t, c, "busy", nil, echo)
	connected(t, holder, "busy")
	session, err := s.Open(ctx, "busy", exec())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Open(ctx, "busy", exec()); !errors.Is(err, tunnel.ErrTooMany) {
		t.Errorf("second session: %v", err)
	}
	session.Close()
	eventually(t, "the session is released", func() bool {
		session, err := s.Open(ctx, "busy", exec())
		if err == nil {
			session.Close()
		}
		return err == nil
	})
}

// silent connects a node that never opens a session.
func silent(t *testing.T, c nodev1.TunnelServiceClient, name string) (end context.CancelFunc, control nodev1.TunnelService_ConnectClient) {
	t.Helper()
	ctx, cancel := context.WithCancel(tunneltest.As(context.Background(), "system:node:"+name))
	t.Cleanup(cancel)
	control, err := c.Connect(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := control.Send(&nodev1.ConnectRequest{Message: &nodev1.ConnectRequest_Hello{Hello: &nodev1.Hello{Node: name}}}); err != nil {
		t.Fatal(err)
	}
	return cancel, control
}

func TestOnlyNodesForThemselves(t *testing.T) {
	s, c := start(t, tunnel.Config{})
	for user, hello := range map[string]string{
		"":               "n1",
		"alice":          "n1",
		"system:node:":   "",
		"system:node:n2": "n1",
	} {
		control, err := c.Connect(tunneltest.As(context.Background(), user))
		if err != nil {
			t.Fatal(err)
		}
		_ = control.Send(&nodev1.ConnectRequest{Message: &nodev1.ConnectRequest_Hello{Hello: &nodev1.Hello{Node: hello}}})
		if _, err := control.Recv(); grpcstatus.Code(err) != codes.PermissionDenied {
			t.Errorf("user %q as node %q: %v", user, hello, err)
		}
	}
	// Another node cannot open a session, and its id cannot be guessed.
	_, control := silent(t, c, "n1")
	if m, err := control.Recv(); err != nil || m.GetWelcome().GetHeartbeatSeconds() < 1 {
		t.Fatalf("welcome: %v, %v", m, err)
	}
	connected(t, s, "n1")
	ctx, cancel := context.WithCancel(context.Background())
	opened := make(chan error, 1)
	go func() {
		_, err := s.Open(ctx, "n1", exec())
		opened <- err
	}()
	m, err := control.Recv()
	if err != nil || len(m.GetOpen().GetSessionId()) < 20 {
		t.Fatalf("open: %v, %v", m, err)
	}
	for _, try := range []struct{ user, id string }{
		{"system:node:n2", m.GetOpen().GetSessionId()},
		{"system:node:n1", "guessed"},
		{"system:node:n1", ""},
	} {
		session, err := c.Session(tunneltest.As(context.Background(), try.user))
		if err != nil {
			t.Fatal(err)
		}
		_ = session.Send(&nodev1.SessionRequest{Message: &nodev1.SessionRequest_SessionId{SessionId: try.id}})
		if _, err := session.Recv(); grpcstatus.Code(err) != codes.NotFound {
			t.Errorf("%+v: %v", try, err)
		}
	}
	cancel()
	if err := <-opened; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestEndsOnBothSides(t *testing.T) { each(t, tunnel.Config{}, testEndsOnBothSides) }

func testEndsOnBothSides(t *testing.T, s, holder *tunnel.Server, c nodev1.TunnelServiceClient) {
	ended := make(chan error, 1)
	node := tunneltest.Connect(t, c, "n1", nil, func(_ *nodev1.Open, session tunneltest.Session) {
		_, err := session.Recv()
		ended <- err
	})
	connected(t, holder, "n1")

	ctx, cancel := context.WithCancel(context.Background())
	session, err := s.Open(ctx, "n1", exec())
	if err != nil {
		t.Fatal(err)
	}
	cancel() // the client leaves
	if err := session.Output(nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("output after the client left: %v", err)
	}
	if err := <-ended; err == nil {
		t.Error("the node's side did not end")
	}
	if err := session.Send(nodev1.Channel_CHANNEL_STDIN, []byte("x")); err == nil {
		t.Error("send after the end")
	}

	session, err = s.Open(context.Background(), "n1", exec())
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	node.Stop() // the node leaves
	if err := session.Output(nil, nil); !errors.Is(err, tunnel.ErrEnded) {
		t.Errorf("output after the node left: %v", err)
	}
	eventually(t, "the node is disconnected", func() bool { return !holder.Connected("n1") })
}

func TestReconnectReplaces(t *testing.T) {
	s, c := start(t, tunnel.Config{})
	_, first := silent(t, c, "n1")
	connected(t, s, "n1")
	tunneltest.Connect(t, c, "n1", nil, echo)
	for {
		_, err := first.Recv()
		if err == nil {
			continue // the welcome
		}
		if grpcstatus.Code(err) != codes.Aborted {
			t.Errorf("the first stream: %v", err)
		}
		break
	}
	session, err := s.Open(context.Background(), "n1", exec())
	if err != nil {
		t.Fatal(err)
	}
	session.Close()
}

// withdrawn is a credential that is valid until the channel is closed.
type withdrawn chan struct{}

func (w withdrawn) Valid(context.Context) bool {
	select {
	case <-w:
		return false
	default:
		return true
	}
}

func TestEndsWithTheRights(t *testing.T) {
	for name, tt := range map[string]struct {
		end  func(w withdrawn, uid *atomic.Pointer[types.UID])
		code codes.Code
	}{
		"the credential is withdrawn": {func(w withdrawn, _ *atomic.Pointer[types.UID]) { close(w) }, codes.Unauthenticated},
		"the Node is deleted":         {func(_ withdrawn, uid *atomic.Pointer[types.UID]) { uid.Store(nil) }, codes.FailedPrecondition},
		"the Node is replaced":        {func(_ withdrawn, uid *atomic.Pointer[types.UID]) { uid.Store(new(types.UID("b"))) }, codes.FailedPrecondition},
	} {
		t.Run(name, func(t *testing.T) {
			w := make(withdrawn)
			var uid atomic.Pointer[types.UID]
			uid.Store(new(types.UID("a")))
			s := tunnel.New(tunnel.Config{RecheckEvery: 5 * time.Millisecond, Registered: func(string) (types.UID, bool) {
				if u := uid.Load(); u != nil {
					return *u, true
				}
				return "", false
			}})
			c := tunneltest.ServeAs(t, s, func(u *request.User) { u.Credential = w })
			_, control := silent(t, c, "n1")
			connected(t, s, "n1")
			session, own := open(t, s, c, control)
			defer session.Close()
			tt.end(w, &uid)
			wantEnd(t, control, tt.code)
			if err := session.Output(nil, nil); !errors.Is(err, tunnel.ErrEnded) {
				t.Errorf("the session: %v", err)
			}
			wantEnd(t, own, tt.code)
			eventually(t, "the node is disconnected", func() bool { return !s.Connected("n1") })
		})
	}
}

func TestUnregisteredNodesAreRefused(t *testing.T) {
	_, c := start(t, tunnel.Config{Registered: func(string) (types.UID, bool) { return "", false }})
	_, control := silent(t, c, "n1")
	wantEnd(t, control, codes.FailedPrecondition)
}

func TestEndsWithTheCertificate(t *testing.T) {
	for name, renewed := range map[string]bool{"without a renewed one": false, "renewed": true} {
		t.Run(name, func(t *testing.T) {
			var now atomic.Int64
			began := time.Now()
			s := tunnel.New(tunnel.Config{RecheckEvery: 5 * time.Millisecond, Now: func() time.Time { return began.Add(time.Duration(now.Load())) }})
			const life = time.Hour
			old := tunneltest.ServeAs(t, s, func(u *request.User) { u.Expires = began.Add(life) })
			_, control := silent(t, old, "n1")
			connected(t, s, "n1")
			session, own := open(t, s, old, control)
			defer session.Close()
			if renewed {
				next := tunneltest.ServeAs(t, s, func(u *request.User) { u.Expires = began.Add(10 * life) })
				_, later := silent(t, next, "n1")
				wantEnd(t, control, codes.Aborted)
				now.Store(int64(life))
				// A new session works at once, and the old one stays open.
				fresh, _ := open(t, s, next, later)
				fresh.Close()
				if err := session.Send(nodev1.Channel_CHANNEL_STDIN, []byte("x")); err != nil {
					t.Fatal(err)
				}
				if m, err := own.Recv(); err != nil || string(m.GetData().GetPayload()) != "x" {
					t.Fatal(m, err)
				}
				return
			}
			now.Store(int64(life))
			wantEnd(t, control, codes.Unauthenticated)
			wantEnd(t, own, codes.Unauthenticated)
		})
	}
}

// open opens a session over a control stream, and returns both of its sides.
func open(t *testing.T, s *tunnel.Server, c nodev1.TunnelServiceClient, control nodev1.TunnelService_ConnectClient) (*tunnel.Session, nodev1.TunnelService_SessionClient) {
	t.Helper()
	type result struct {
		session *tunnel.Session
		err     error
	}
	opened := make(chan result, 1)
	go func() {
		session, err := s.Open(context.Background(), "n1", exec())
		opened <- result{session, err}
	}()
	for {
		m, err := control.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if m.GetOpen() == nil {
			continue // the welcome
		}
		ctx, cancel := context.WithCancel(tunneltest.As(context.Background(), "system:node:n1"))
		t.Cleanup(cancel)
		own, err := c.Session(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := own.Send(&nodev1.SessionRequest{Message: &nodev1.SessionRequest_SessionId{SessionId: m.GetOpen().GetSessionId()}}); err != nil {
			t.Fatal(err)
		}
		r := <-opened
		if r.err != nil {
			t.Fatal(r.err)
		}
		return r.session, own
	}
}

// wantEnd reads a stream to its end and checks its status code.
func wantEnd[T any](t *testing.T, stream interface{ Recv() (T, error) }, want codes.Code) {
	t.Helper()
	for {
		if _, err := stream.Recv(); err != nil {
			if grpcstatus.Code(err) != want {
				t.Errorf("the stream ended with %v, want %v", err, want)
			}
			return
		}
	}
}

func TestExitStatus(t *testing.T) { each(t, tunnel.Config{}, testExitStatus) }

func testExitStatus(t *testing.T, s, holder *tunnel.Server, c nodev1.TunnelServiceClient) {
	tunneltest.Connect(t, c, "n1", nil, func(open *nodev1.Open, session tunneltest.Session) {
		switch open.GetExec().GetCommand()[0] {
		case "ok":
			_ = session.Exit(0, nil)
		case "status":
			st := apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, "x").Status()
			_ = session.Exit(0, &st)
		case "garbage":
			_ = session.Send(&nodev1.SessionRequest{Message: &nodev1.SessionRequest_Exit{Exit: &nodev1.Exit{Status: []byte("\xff\xff\xff")}}})
		}
	})
	connected(t, holder, "n1")
	for command, check := range map[string]func(error) bool{
		"ok":      func(err error) bool { return err == nil },
		"status":  apierrors.IsNotFound,
		"garbage": apierrors.IsInternalError,
		"nothing": func(err error) bool { return errors.Is(err, tunnel.ErrEnded) },
	} {
		session, err := s.Open(context.Background(), "n1", exec(command))
		if err != nil {
			t.Fatal(err)
		}
		if err := session.Output(nil, nil); !check(err) {
			t.Errorf("%s: %v", command, err)
		}
		session.Close()
	}
}

func TestDial(t *testing.T) { each(t, tunnel.Config{}, testDial) }

func testDial(t *testing.T, s, holder *tunnel.Server, c nodev1.TunnelServiceClient) {
	tunneltest.Connect(t, c, "n1", nil, func(open *nodev1.Open, session tunneltest.Session) {
		if open.GetDial().GetAddress() == "10.0.0.1:1" {
			st := apierrors.NewServiceUnavailable("connection refused").Status()
			_ = session.Exit(0, &st)
			return
		}
		for {
			m, err := session.Recv()
			if err != nil {
				return
			}
			if d := m.GetData(); d != nil {
				_ = session.Say(nodev1.Channel_CHANNEL_STDOUT, string(d.GetPayload()))
			}
		}
	})
	connected(t, holder, "n1")
	conn, err := s.Dial(context.Background(), "n1", "10.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != "hello" {
		t.Errorf("%q, %v", got, err)
	}
	if err := conn.SetReadDeadline(time.Now()); err != nil {
		t.Error(err)
	}
	if _, err := conn.Read(got); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	conn, err = s.Dial(context.Background(), "n1", "10.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(got); !apierrors.IsServiceUnavailable(err) {
		t.Errorf("refused: %v", err)
	}
}

func TestHeartbeatChangesReachNodes(t *testing.T) {
	s, c := start(t, tunnel.Config{})
	announced := func(control nodev1.TunnelService_ConnectClient) int32 {
		t.Helper()
		m, err := control.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return m.GetWelcome().GetHeartbeatSeconds()
	}
	_, early := silent(t, c, "n1")
	if got := announced(early); got != 2 {
		t.Errorf("initial heartbeat: %d seconds", got)
	}
	connected(t, s, "n1")
	s.SetHeartbeat(2) // unchanged: nothing is sent
	s.SetHeartbeat(7)
	if got := announced(early); got != 7 {
		t.Errorf("changed heartbeat: %d seconds", got)
	}
	_, late := silent(t, c, "n2")
	if got := announced(late); got != 7 {
		t.Errorf("node that connects later: %d seconds", got)
	}
}

// Only apiservers may relay sessions, and a relay must begin with a valid first frame.
func TestRelayRefuses(t *testing.T) {
	s, _ := start(t, tunnel.Config{OpenTimeout: 200 * time.Millisecond})
	never := func(context.Context) error { return grpcstatus.Error(codes.PermissionDenied, "not you") }
	c := tunneltest.ServeRelay(t, s.Relay(never))
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	if _, err := c.Find(ctx, &nodev1.FindRequest{Node: "n1"}); grpcstatus.Code(err) != codes.PermissionDenied {
		t.Errorf("Find of an unauthorized caller: %v", err)
	}
	stream, err := c.Relay(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); grpcstatus.Code(err) != codes.PermissionDenied {
		t.Errorf("Relay of an unauthorized caller: %v", err)
	}
	c = tunneltest.ServeRelay(t, s.Relay(func(context.Context) error { return nil }))
	if stream, err = c.Relay(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); grpcstatus.Code(err) != codes.DeadlineExceeded {
		t.Errorf("no first frame: %v", err)
	}
	patient, _ := start(t, tunnel.Config{OpenTimeout: time.Minute})
	c = tunneltest.ServeRelay(t, patient.Relay(func(context.Context) error { return nil }))
	if stream, err = c.Relay(ctx); err != nil {
		t.Fatal(err)
	}
	_ = stream.Send(&nodev1.RelayRequest{})
	if _, err := stream.Recv(); grpcstatus.Code(err) != codes.InvalidArgument {
		t.Errorf("an empty first frame: %v", err)
	}
}

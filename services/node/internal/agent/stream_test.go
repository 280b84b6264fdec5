package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	nodev1 "keelson.dev/proto/keelson/node/v1"
	"keelson.dev/services/node/internal/stream"
)

// tunnelServer is the apiserver's side of the tunnel, as far as these tests need it.
type tunnelServer struct {
	nodev1.UnimplementedTunnelServiceServer
	hello chan string

	mu       sync.Mutex
	control  nodev1.TunnelService_ConnectServer
	waiting  map[string]chan nodev1.TunnelService_SessionServer
	refused  map[string]chan *metav1.Status
	sequence int
}

func (s *tunnelServer) Connect(control nodev1.TunnelService_ConnectServer) error {
	m, err := control.Recv()
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.control = control
	s.mu.Unlock()
	welcome := &nodev1.ConnectResponse{Message: &nodev1.ConnectResponse_Welcome{Welcome: &nodev1.Welcome{HeartbeatSeconds: 7}}}
	if err := control.Send(welcome); err != nil {
		return err
	}
	s.hello <- m.GetHello().GetNode()
	for {
		m, err := control.Recv()
		if err != nil {
			return err
		}
		if r := m.GetRefused(); r != nil {
			st := &metav1.Status{}
			if err := st.Unmarshal(r.GetStatus()); err != nil {
				return err
			}
			s.mu.Lock()
			s.refused[r.GetSessionId()] <- st
			s.mu.Unlock()
		}
	}
}

func (s *tunnelServer) Session(rpc nodev1.TunnelService_SessionServer) error {
	m, err := rpc.Recv()
	if err != nil {
		return err
	}
	s.mu.Lock()
	c := s.waiting[m.GetSessionId()]
	s.mu.Unlock()
	if c == nil {
		return errors.New("unexpected session")
	}
	c <- rpc
	<-rpc.Context().Done()
	return nil
}

// tunnelRig is a rig whose node has an open tunnel.
type tunnelRig struct {
	*rig
	server    *tunnelServer
	heartbeat chan time.Duration
}

func newTunnelRig(t *testing.T) *tunnelRig {
	t.Helper()
	r := &tunnelRig{rig: newRig(t), heartbeat: make(chan time.Duration, 1), server: &tunnelServer{
		hello: make(chan string, 8), waiting: map[string]chan nodev1.TunnelService_SessionServer{}, refused: map[string]chan *metav1.Status{},
	}}
	l := bufconn.Listen(1 << 20)
	srv := grpc.NewServer()
	nodev1.RegisterTunnelServiceServer(srv, r.server)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = srv.Serve(l)
	}()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- stream.Run(ctx, stream.Config{
			Node: r.node, Endpoints: []string{"apiserver"},
			Dial: func(string) (*grpc.ClientConn, error) {
				return grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
					grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
			},
			Handler: &stream.Backend{Runtime: r.runtime.Client, Pod: r.agent.Find},
			Welcome: func(d time.Duration) { r.heartbeat <- d },
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("tunnel: %v", err)
		}
		srv.Stop()
		<-served
	})
	select {
	case name := <-r.server.hello:
		if name != r.node {
			t.Errorf("hello names node %q", name)
		}
	case <-time.After(time.Minute):
		t.Fatal("the node did not connect")
	}
	if d := <-r.heartbeat; d != 7*time.Second {
		t.Errorf("heartbeat: %v", d)
	}
	return r
}

// result is the outcome of a session.
type result struct {
	stdout, stderr bytes.Buffer
	code           int32
	status         *metav1.Status
	refused        bool
}

// open opens a session. feed, unless nil, sends the client's messages.
func (r *tunnelRig) open(open *nodev1.Open, feed func(nodev1.TunnelService_SessionServer)) *result {
	r.t.Helper()
	s := r.server
	s.mu.Lock()
	s.sequence++
	open.SessionId = fmt.Sprintf("session-%d", s.sequence)
	opened, refused := make(chan nodev1.TunnelService_SessionServer, 1), make(chan *metav1.Status, 1)
	s.waiting[open.SessionId], s.refused[open.SessionId] = opened, refused
	err := s.control.Send(&nodev1.ConnectResponse{Message: &nodev1.ConnectResponse_Open{Open: open}})
	s.mu.Unlock()
	if err != nil {
		r.t.Fatal(err)
	}
	out := &result{}
	var rpc nodev1.TunnelService_SessionServer
	select {
	case out.status = <-refused:
		out.refused = true
		return out
	case rpc = <-opened:
	case <-time.After(time.Minute):
		r.t.Fatal("the session was neither opened nor refused")
	}
	if feed != nil {
		go feed(rpc)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			m, err := rpc.Recv()
			if err != nil {
				return
			}
			switch m := m.GetMessage().(type) {
			case *nodev1.SessionRequest_Data:
				w := &out.stdout
				if m.Data.GetChannel() == nodev1.Channel_CHANNEL_STDERR {
					w = &out.stderr
				}
				w.Write(m.Data.GetPayload())
			case *nodev1.SessionRequest_Exit:
				out.code = m.Exit.GetCode()
				if raw := m.Exit.GetStatus(); len(raw) > 0 {
					out.status = &metav1.Status{}
					if err := out.status.Unmarshal(raw); err != nil {
						r.t.Error(err)
					}
				}
				return
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		r.t.Fatalf("the session did not end; so far %q %q", out.stdout.String(), out.stderr.String())
	}
	return out
}

func stdin(rpc nodev1.TunnelService_SessionServer, text string) {
	_ = rpc.Send(&nodev1.SessionResponse{Message: &nodev1.SessionResponse_Data{Data: &nodev1.Data{Channel: nodev1.Channel_CHANNEL_STDIN, Payload: []byte(text)}}})
}

func closeStdin(rpc nodev1.TunnelService_SessionServer) {
	_ = rpc.Send(&nodev1.SessionResponse{Message: &nodev1.SessionResponse_CloseChannel{CloseChannel: nodev1.Channel_CHANNEL_STDIN}})
}

func refTo(p *corev1.Pod, container string) *nodev1.PodRef {
	return &nodev1.PodRef{Namespace: p.Namespace, Name: p.Name, Uid: string(p.UID), Container: container}
}

func (r *tunnelRig) logs(req *nodev1.Logs) *result {
	r.t.Helper()
	return r.open(&nodev1.Open{Target: &nodev1.Open_Logs{Logs: req}}, nil)
}

func TestLogs(t *testing.T) {
	r := newTunnelRig(t)
	p := r.awaitReady(r.create(simple("talking", "echo one; sleep 0.3; echo two >&2; sleep 0.3; echo three; "+forever)))
	ref := refTo(p, "main")
	r.until("all lines are in the log", time.Minute, func() bool { return r.logs(&nodev1.Logs{Pod: ref}).stdout.String() == "one\ntwo\nthree\n" })
	two, six := int64(2), int64(6)
	for name, c := range map[string]struct {
		req  *nodev1.Logs
		want string
	}{
		"tail":   {&nodev1.Logs{Pod: ref, TailLines: &two}, "two\nthree\n"},
		"limit":  {&nodev1.Logs{Pod: ref, LimitBytes: &six}, "one\ntw"},
		"stdout": {&nodev1.Logs{Pod: ref, Stream: "Stdout"}, "one\nthree\n"},
		"stderr": {&nodev1.Logs{Pod: ref, Stream: "Stderr"}, "two\n"},
	} {
		if got := r.logs(c.req).stdout.String(); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	stamped := r.logs(&nodev1.Logs{Pod: ref, Timestamps: true}).stdout.String()
	stamp, rest, _ := strings.Cut(stamped, " ")
	if _, err := time.Parse(time.RFC3339Nano, stamp); err != nil || !strings.HasPrefix(rest, "one\n") {
		t.Errorf("timestamps: %q", stamped)
	}
	if out := r.logs(&nodev1.Logs{Pod: ref, Previous: true}); out.status == nil || !strings.Contains(out.status.Message, `previous terminated container "main" in pod "talking" not found`) || out.status.Code != 400 {
		t.Errorf("previous: %+v", out.status)
	}
	if out := r.logs(&nodev1.Logs{Pod: refTo(p, "other")}); out.status == nil || out.status.Code != 400 {
		t.Errorf("another container: %+v", out.status)
	}
	foreign := refTo(p, "main")
	foreign.Uid = "another"
	if out := r.logs(&nodev1.Logs{Pod: foreign}); !out.refused || out.status.Code != 404 {
		t.Errorf("another pod: %+v", out.status)
	}
}

// TestFollow checks that a followed log crosses a rotation and ends when its container
// ends.
func TestFollow(t *testing.T) {
	r := newTunnelRig(t)
	p := simple("counting", "for i in $(seq 1 40); do echo line $i of many that fill the file; sleep 0.05; done")
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	p = r.create(p)
	p = r.await(p, "runs", func(p *corev1.Pod) bool { // or has run: the status Running may have been skipped
		return containerStatus(p, "main").State.Running != nil || containerStatus(p, "main").State.Terminated != nil
	})
	out := r.logs(&nodev1.Logs{Pod: refTo(p, "main"), Follow: true})
	lines := strings.Split(strings.TrimSpace(out.stdout.String()), "\n")
	if len(lines) != 40 || !strings.HasPrefix(lines[39], "line 40 ") {
		t.Errorf("%d lines, the last is %q, status %+v", len(lines), lines[len(lines)-1], out.status)
	}
	crashing := simple("again", "echo instance; exit 1")
	crashing = r.create(crashing)
	crashing = r.await(crashing, "was restarted", func(p *corev1.Pod) bool { return containerStatus(p, "main").RestartCount == 1 })
	r.until("the previous log", time.Minute, func() bool {
		return r.logs(&nodev1.Logs{Pod: refTo(crashing, "main"), Previous: true}).stdout.String() == "instance\n"
	})
}

func TestExec(t *testing.T) {
	r := newTunnelRig(t)
	p := r.awaitReady(r.create(simple("working", forever)))
	ref := refTo(p, "main")
	exec := func(feed func(nodev1.TunnelService_SessionServer), req *nodev1.Exec) *result {
		t.Helper()
		req.Pod = ref
		return r.open(&nodev1.Open{Target: &nodev1.Open_Exec{Exec: req}}, feed)
	}
	out := exec(nil, &nodev1.Exec{Command: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, Stdout: true, Stderr: true})
	if out.stdout.String() != "out\n" || out.stderr.String() != "err\n" || out.code != 3 || out.status != nil {
		t.Errorf("exec: %q %q %d %+v", out.stdout.String(), out.stderr.String(), out.code, out.status)
	}
	out = exec(func(rpc nodev1.TunnelService_SessionServer) {
		stdin(rpc, "hello ")
		stdin(rpc, "world")
		closeStdin(rpc)
	}, &nodev1.Exec{Command: []string{"cat"}, Stdin: true, Stdout: true, Stderr: true})
	if out.stdout.String() != "hello world" || out.code != 0 {
		t.Errorf("cat: %q %d %+v", out.stdout.String(), out.code, out.status)
	}
	out = exec(func(rpc nodev1.TunnelService_SessionServer) {
		_ = rpc.Send(&nodev1.SessionResponse{Message: &nodev1.SessionResponse_Resize{Resize: &nodev1.Resize{Width: 91, Height: 17}}})
		stdin(rpc, "until stty size | grep -q '17 91'; do sleep 0.05; done; stty size; exit\n")
	}, &nodev1.Exec{Command: []string{"sh"}, Stdin: true, Stdout: true, Tty: true})
	if !strings.Contains(out.stdout.String(), "\r\n17 91\r\n") {
		t.Errorf("terminal: %q", out.stdout.String())
	}
	if out := exec(nil, &nodev1.Exec{Command: []string{"/no/such/program"}, Stdout: true, Stderr: true}); out.code == 0 && out.status == nil {
		t.Errorf("a missing program: %+v", out)
	}
	if out := exec(nil, &nodev1.Exec{}); !out.refused || out.status.Code != 400 {
		t.Errorf("no command: %+v", out.status)
	}
	// More output than any buffer on the way holds.
	out = exec(nil, &nodev1.Exec{Command: []string{"sh", "-c", "yes keelson | head -c 3000000"}, Stdout: true, Stderr: true})
	if out.stdout.Len() != 3000000 {
		t.Errorf("%d bytes of 3000000", out.stdout.Len())
	}
}

func TestAttach(t *testing.T) {
	r := newTunnelRig(t)
	p := simple("asking", "while read line; do echo got $line; done")
	p.Spec.Containers[0].Stdin = true
	p = r.awaitReady(r.create(p))
	ended := make(chan struct{})
	out := r.open(&nodev1.Open{Target: &nodev1.Open_Attach{Attach: &nodev1.Attach{Pod: refTo(p, "main"), Stdin: true, Stdout: true, Stderr: true}}},
		func(rpc nodev1.TunnelService_SessionServer) {
			defer close(ended)
			// The runtime forwards input before it has attached the output, so only the
			// second line's output is guaranteed to be seen.
			for _, line := range []string{"that", "this"} {
				stdin(rpc, line+"\n")
				for !strings.Contains(r.logs(&nodev1.Logs{Pod: refTo(p, "main")}).stdout.String(), "got "+line) {
					<-time.After(50 * time.Millisecond)
				}
			}
			r.delete(p)
		})
	<-ended
	if !strings.Contains(out.stdout.String(), "got this\n") {
		t.Errorf("attach: %q %+v", out.stdout.String(), out.status)
	}
}

func TestPortForward(t *testing.T) {
	r := newTunnelRig(t)
	p := r.awaitReady(r.create(simple("serving", "mkdir /tmp/www; echo page >/tmp/www/index.html; httpd -p 127.0.0.1:8080 -h /tmp/www; "+forever)))
	forward := func(port int32) *result {
		return r.open(&nodev1.Open{Target: &nodev1.Open_PortForward{PortForward: &nodev1.PortForward{Pod: refTo(p, ""), Port: port}}},
			func(rpc nodev1.TunnelService_SessionServer) {
				stdin(rpc, "GET /index.html HTTP/1.0\r\n\r\n")
			})
	}
	r.until("the page is served", time.Minute, func() bool { return strings.HasSuffix(forward(8080).stdout.String(), "page\n") })
	if out := forward(9999); out.status == nil || !strings.Contains(out.status.Message, "failed to connect to localhost:9999 inside namespace") {
		t.Errorf("a closed port: %+v", out.status)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(conn, conn)
		_ = conn.Close()
	}()
	out := r.open(&nodev1.Open{Target: &nodev1.Open_Dial{Dial: &nodev1.Dial{Network: "tcp", Address: l.Addr().String()}}},
		func(rpc nodev1.TunnelService_SessionServer) {
			stdin(rpc, "echo")
			closeStdin(rpc)
		})
	if out.stdout.String() != "echo" {
		t.Errorf("dial: %q %+v", out.stdout.String(), out.status)
	}
}

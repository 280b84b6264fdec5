package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/proto/apistatus"
	"keelson.dev/proto/client"
	podv1 "keelson.dev/proto/keelson/pod/v1"
)

// container is a PodService with one pod "default/web", whose container knows a few commands, and
// whose port 80 sends back what it gets.
type container struct {
	podv1.UnimplementedPodServiceServer
	ended chan string // receives the name of each call that has ended

	mu       sync.Mutex
	received bytes.Buffer // by port 80
	logs     *podv1.LogsRequest
}

func notFound(name string) error {
	return apistatus.ToGRPC(&apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, name).ErrStatus)
}

func (c *container) Logs(r *podv1.LogsRequest, stream podv1.PodService_LogsServer) error {
	defer func() { c.ended <- "logs" }()
	if r.GetContainer().GetPod() != "web" {
		return notFound(r.GetContainer().GetPod())
	}
	c.mu.Lock()
	c.logs = r
	c.mu.Unlock()
	for _, line := range []string{"one\n", "two\n"} {
		if err := stream.Send(&podv1.LogsResponse{Data: []byte(line)}); err != nil {
			return err
		}
	}
	if r.GetFollow() {
		<-stream.Context().Done()
	}
	return nil
}

func (c *container) Exec(stream podv1.PodService_ExecServer) error {
	defer func() { c.ended <- "exec" }()
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	start := m.GetStart()
	if start.GetContainer().GetPod() != "web" {
		return notFound(start.GetContainer().GetPod())
	}
	say := func(stdout, stderr string) {
		if stdout != "" {
			_ = stream.Send(&podv1.ExecResponse{Message: &podv1.ExecResponse_Stdout{Stdout: []byte(stdout)}})
		}
		if stderr != "" {
			_ = stream.Send(&podv1.ExecResponse{Message: &podv1.ExecResponse_Stderr{Stderr: []byte(stderr)}})
		}
	}
	exit := &podv1.Exit{}
	_ = stream.Send(&podv1.ExecResponse{Message: &podv1.ExecResponse_Started{Started: &podv1.Started{}}})
	switch start.GetCommand()[0] {
	case "echo":
		say(strings.Join(start.GetCommand()[1:], " ")+"\n", "noise")
	case "false":
		exit.Code = 1
	case "cat":
		for start.GetStdin() {
			m, err := stream.Recv()
			if err != nil {
				return err
			}
			if m.GetStdinEnd() != nil {
				break
			}
			say(string(m.GetStdin()), "")
		}
	case "size":
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		say(fmt.Sprintf("%t %dx%d", start.GetTty(), m.GetResize().GetColumns(), m.GetResize().GetRows()), "")
	case "sleep":
		<-stream.Context().Done()
	case "die":
		return nil
	case "fail":
		return apistatus.ToGRPC(&apierrors.NewInternalError(errors.New("no such file")).ErrStatus)
	}
	return stream.Send(&podv1.ExecResponse{Message: &podv1.ExecResponse_Exit{Exit: exit}})
}

func (c *container) Attach(stream podv1.PodService_AttachServer) error {
	defer func() { c.ended <- "attach" }()
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	if m.GetStart().GetContainer().GetPod() != "web" {
		return notFound(m.GetStart().GetContainer().GetPod())
	}
	_ = stream.Send(&podv1.AttachResponse{Message: &podv1.AttachResponse_Started{Started: &podv1.Started{}}})
	m, err = stream.Recv()
	if err != nil {
		return err
	}
	_ = stream.Send(&podv1.AttachResponse{Message: &podv1.AttachResponse_Stdout{Stdout: m.GetStdin()}})
	return stream.Send(&podv1.AttachResponse{Message: &podv1.AttachResponse_Stderr{Stderr: []byte("bye")}})
}

func (c *container) PortForward(stream podv1.PodService_PortForwardServer) error {
	defer func() { c.ended <- "port-forward" }()
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	start := m.GetStart()
	if start.GetPod() != "web" {
		return notFound(start.GetPod())
	}
	if err := stream.Send(&podv1.PortForwardResponse{Message: &podv1.PortForwardResponse_Started{Started: &podv1.Started{}}}); err != nil {
		return err
	}
	switch start.GetPort() {
	case 80, 82:
	case 8080:
		return c.page(stream)
	default:
		return apistatus.ToGRPC(&apierrors.NewInternalError(errors.New("connection refused")).ErrStatus)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		c.mu.Lock()
		c.received.Write(m.GetData())
		c.mu.Unlock()
		if err := stream.Send(&podv1.PortForwardResponse{Message: &podv1.PortForwardResponse_Data{Data: m.GetData()}}); err != nil {
			return err
		}
	}
	if start.GetPort() == 82 { // a server that keeps its direction open
		<-stream.Context().Done()
		return nil
	}
	return stream.Send(&podv1.PortForwardResponse{Message: &podv1.PortForwardResponse_DataEnd{DataEnd: &podv1.DataEnd{}}})
}

// page answers one HTTP request.
func (c *container) page(stream podv1.PodService_PortForwardServer) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	return stream.Send(&podv1.PortForwardResponse{Message: &podv1.PortForwardResponse_Data{
		Data: []byte("HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n"),
	}})
}

// startContainer serves a container and returns a client of it.
func startContainer() (c *client.Client, served *container, stop func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	server, served := grpc.NewServer(), &container{ended: make(chan string, 1000)}
	podv1.RegisterPodServiceServer(server, served)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(err)
	return client.New(conn, "test/1"), served, func() {
		must(conn.Close())
		server.Stop()
		<-done
	}
}

// testContainer is startContainer for a test, which must leave no goroutine behind.
func testContainer(t *testing.T) (*client.Client, *container) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	c, served, stop := startContainer()
	t.Cleanup(func() {
		stop()
		goleak.VerifyNone(t, before)
	})
	return c, served
}

func (c *container) hasEnded(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-c.ended:
		if got != want {
			t.Errorf("%s has ended, want %s", got, want)
		}
	case <-time.After(time.Minute):
		t.Fatalf("the server's %s has not ended", want)
	}
}

func TestLogs(t *testing.T) {
	c, served := testContainer(t)
	five, second, stdout := int64(5), metav1.Unix(1700000000, 0), corev1.LogStreamStdout
	log, err := c.Logs(t.Context(), "default", "web", &corev1.PodLogOptions{
		Container: "c", Previous: true, Timestamps: true, SinceTime: &second, LimitBytes: &five, TailLines: &five, Stream: &stdout,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := iotest.TestReader(log, []byte("one\ntwo\n")); err != nil {
		t.Error(err)
	}
	r := served.logs
	if r.GetContainer().GetContainer() != "c" || !r.GetPrevious() || !r.GetTimestamps() || r.GetSinceTime().GetSeconds() != 1700000000 ||
		r.GetLimitBytes() != 5 || r.GetTailLines() != 5 || r.GetStream() != podv1.LogsRequest_STREAM_STDOUT {
		t.Errorf("the server was asked for %v", r)
	}
	served.hasEnded(t, "logs")

	log, err = c.Logs(t.Context(), "default", "gone", nil)
	if err == nil {
		_, err = log.Read(make([]byte, 1))
	}
	if !apierrors.IsNotFound(err) {
		t.Errorf("a missing pod: %v", err)
	}
	served.hasEnded(t, "logs")

	log, err = c.Logs(t.Context(), "default", "web", &corev1.PodLogOptions{Follow: true})
	if err == nil {
		_, err = io.ReadFull(log, make([]byte, 8))
	}
	if err != nil {
		t.Fatal(err)
	}
	_ = log.Close()
	served.hasEnded(t, "logs")
	if _, err := log.Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("read after close: %v", err)
	}
	for _, o := range []*corev1.PodLogOptions{{InsecureSkipTLSVerifyBackend: true}, {Stream: new("both")}} {
		if _, err := c.Logs(t.Context(), "default", "web", o); err == nil {
			t.Errorf("%v was accepted", o)
		}
	}
}

func TestExec(t *testing.T) {
	c, served := testContainer(t)
	large := strings.Repeat("0123456789abcdef", 10<<10)
	sizes := make(chan client.TerminalSize, 1)
	sizes <- client.TerminalSize{Columns: 80, Rows: 24}
	for name, tc := range map[string]struct {
		pod            string
		command        []string
		streams        client.Streams
		stdout, stderr string
		check          func(error) bool
	}{
		"output":    {command: []string{"echo", "a", "b"}, stdout: "a b\n", stderr: "noise"},
		"stdin":     {command: []string{"cat"}, streams: client.Streams{Stdin: strings.NewReader(large)}, stdout: large},
		"no stdin":  {command: []string{"cat"}},
		"terminal":  {command: []string{"size"}, streams: client.Streams{TTY: true, Resize: sizes}, stdout: "true 80x24"},
		"exit code": {command: []string{"false"}, check: func(err error) bool { var exit *client.ExitError; return errors.As(err, &exit) && exit.Code == 1 }},
		"no pod":    {pod: "gone", command: []string{"echo"}, check: apierrors.IsNotFound},
		"failure":   {command: []string{"fail"}, check: apierrors.IsInternalError},
		"cut off":   {command: []string{"die"}, check: func(err error) bool { return err != nil && strings.Contains(err.Error(), "without an exit code") }},
		"failing stdin": {command: []string{"cat"}, streams: client.Streams{Stdin: iotest.ErrReader(io.ErrNoProgress)}, check: func(err error) bool {
			return errors.Is(err, io.ErrNoProgress)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errOut bytes.Buffer
			tc.streams.Stdout, tc.streams.Stderr = &out, &errOut
			pod := tc.pod
			if pod == "" {
				pod = "web"
			}
			err := c.Exec(t.Context(), "default", pod, client.ExecOptions{Command: tc.command, Streams: tc.streams})
			if tc.check == nil && err != nil || tc.check != nil && !tc.check(err) {
				t.Errorf("error: %v", err)
			}
			if out.String() != tc.stdout || errOut.String() != tc.stderr {
				t.Errorf("%d bytes of stdout (want %d), stderr %q", out.Len(), len(tc.stdout), errOut.String())
			}
			served.hasEnded(t, "exec")
		})
	}
	broken := client.Streams{Stdout: failingWriter{}}
	if err := c.Exec(t.Context(), "default", "web", client.ExecOptions{Command: []string{"echo"}, Streams: broken}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("failing writer: %v", err)
	}
	served.hasEnded(t, "exec")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if err := c.Exec(ctx, "default", "web", client.ExecOptions{Command: []string{"sleep"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestAttach(t *testing.T) {
	c, served := testContainer(t)
	var out, errOut bytes.Buffer
	o := client.AttachOptions{Container: "c", Streams: client.Streams{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errOut}}
	if err := c.Attach(t.Context(), "default", "web", o); err != nil || out.String() != "hello" || errOut.String() != "bye" {
		t.Errorf("%v, %q, %q", err, out.String(), errOut.String())
	}
	served.hasEnded(t, "attach")
	if err := c.Attach(t.Context(), "default", "gone", client.AttachOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a missing pod: %v", err)
	}
}

func TestPortForward(t *testing.T) {
	c, served := testContainer(t)
	dialing, cancel := context.WithCancel(t.Context())
	conn, err := c.PortForward(dialing, "default", "web", 80)
	if err != nil {
		t.Fatal(err)
	}
	cancel() // does not affect the connection
	if got := conn.RemoteAddr().String(); got != "default/web:80" {
		t.Errorf("address %q", got)
	}
	large := bytes.Repeat([]byte("0123456789abcdef"), 10<<10)
	written := make(chan error, 1)
	go func() {
		_, err := conn.Write(large)
		written <- errors.Join(err, conn.(interface{ CloseWrite() error }).CloseWrite())
	}()
	got, err := io.ReadAll(conn)
	if err := errors.Join(err, <-written); err != nil || !bytes.Equal(got, large) {
		t.Errorf("%d bytes of %d, %v", len(got), len(large), err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	served.hasEnded(t, "port-forward")

	// Close delivers what was written, and does not wait for a server that keeps the connection open.
	served.received.Reset()
	conn, err = c.PortForward(t.Context(), "default", "web", 82)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read past the deadline: %v", err)
	}
	if _, err := conn.Write([]byte("last words")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(conn.Close(), conn.Close()); err != nil {
		t.Error(err)
	}
	if _, err := conn.Write([]byte("x")); err == nil {
		t.Error("a write after Close succeeded")
	}
	tick, deadline := time.NewTicker(5*time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for arrived := false; !arrived; {
		select {
		case <-tick.C:
			served.mu.Lock()
			arrived = served.received.String() == "last words"
			served.mu.Unlock()
		case <-deadline:
			t.Fatal("what was written before Close did not arrive")
		}
	}
	defer client.SetLinger(time.Millisecond)()
	conn, err = c.PortForward(t.Context(), "default", "web", 82)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	served.hasEnded(t, "port-forward")

	if _, err := c.PortForward(t.Context(), "default", "gone", 80); !apierrors.IsNotFound(err) {
		t.Errorf("a missing pod: %v", err)
	}
	conn, err = c.PortForward(t.Context(), "default", "web", 81)
	if err == nil {
		_, err = conn.Read(make([]byte, 1))
		_ = conn.Close()
	}
	if !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("a closed port: %v", err)
	}
	if _, err := c.PortForward(t.Context(), "default", "web", 0); err == nil {
		t.Error("port 0 was accepted")
	}
}

func TestForwardPort(t *testing.T) {
	c, _ := testContainer(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- c.ForwardPort(ctx, l, "default", "web", 80, nil) }()
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			text := strings.Repeat(fmt.Sprint(i), 10000)
			_, err = io.WriteString(conn, text)
			err = errors.Join(err, conn.(*net.TCPConn).CloseWrite())
			got, readErr := io.ReadAll(conn)
			if err := errors.Join(err, readErr); err != nil || string(got) != text {
				t.Errorf("connection %d: %d bytes of %d, %v", i, len(got), len(text), err)
			}
		})
	}
	all.Wait()
	idle, err := net.Dial("tcp", l.Addr().String()) // ends with ctx
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if _, err := idle.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives ForwardPort")
	}

	if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	ctx, cancel = context.WithCancel(t.Context())
	defer cancel()
	go func() { done <- c.ForwardPort(ctx, l, "default", "gone", 80, func(err error) { failed <- err }) }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := <-failed; !apierrors.IsNotFound(err) {
		t.Errorf("forward to a missing pod: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The last lines of a log, and its end.
func ExampleClient_Logs() {
	c, _, stop := startContainer()
	defer stop()
	lines := int64(2)
	log, err := c.Logs(context.Background(), "default", "web", &corev1.PodLogOptions{TailLines: &lines})
	must(err)
	defer log.Close()
	text, err := io.ReadAll(log)
	must(err)
	fmt.Print(string(text))
	// Output:
	// one
	// two
}

// A command, its output, and its exit code.
func ExampleClient_Exec() {
	c, _, stop := startContainer()
	defer stop()
	ctx := context.Background()
	must(c.Exec(ctx, "default", "web", client.ExecOptions{
		Command: []string{"cat"},
		Streams: client.Streams{Stdin: strings.NewReader("hello\n"), Stdout: os.Stdout, Stderr: os.Stderr},
	}))
	err := c.Exec(ctx, "default", "web", client.ExecOptions{Command: []string{"false"}})
	var exit *client.ExitError
	if errors.As(err, &exit) {
		fmt.Println("exit code", exit.Code)
	}
	// Output:
	// hello
	// exit code 1
}

// An HTTP request to a pod.
func ExampleClient_PortForward() {
	c, _, stop := startContainer()
	defer stop()
	web := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return c.PortForward(ctx, "default", "web", 8080)
		},
	}}
	resp, err := web.Get("http://web/")
	must(err)
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	must(err)
	fmt.Print(string(page))
	// Output: hello
}

package rest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/kubernetes"
	clientrest "k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"

	nodev1 "keelson.dev/proto/keelson/node/v1"

	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/tunnel"
	"keelson.dev/services/apiserver/internal/tunnel/tunneltest"
)

// withStreams adds the stream subresources to the row of pods, if the table lacks them.
func withStreams(kinds []*resource.Kind) []*resource.Kind {
	for _, k := range kinds {
		if k.GVK.Kind != "Pod" {
			continue
		}
		if k.Subresources == nil {
			k.Subresources = map[string]*resource.Subresource{}
		}
		for name, verbs := range map[string][]string{
			"log": {"get"}, "exec": {"create", "get"}, "attach": {"create", "get"}, "portforward": {"create", "get"},
		} {
			k.Subresources[name] = &resource.Subresource{Verbs: verbs, Connect: resource.Stream(name)}
		}
	}
	return kinds
}

// front is a running front with a node.
type front struct {
	fake   *fake
	url    string
	config *clientrest.Config
	tunnel *tunnel.Server
	nodes  nodev1.TunnelServiceClient
}

func newFront(t *testing.T) *front {
	t.Helper()
	f := &front{fake: newFake(withStreams(kind.All())...), tunnel: tunnel.New(tunnel.Config{})}
	f.nodes = tunneltest.Serve(t, f.tunnel)
	server := httptest.NewServer(New(Config{API: f.fake, Authn: fakeAuthn{}, Tunnel: f.tunnel}))
	t.Cleanup(server.Close)
	f.url = server.URL
	f.config = &clientrest.Config{Host: server.URL, BearerToken: "admin"}
	return f
}

func (f *front) pod(node string, containers ...string) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", UID: "u1"}, Spec: corev1.PodSpec{NodeName: node}}
	for _, c := range containers {
		pod.Spec.Containers = append(pod.Spec.Containers, corev1.Container{Name: c})
	}
	f.fake.put(f.fake.table.ByKind(corev1.SchemeGroupVersion.WithKind("Pod")), pod)
}

// shell is a node that runs a few commands.
func shell(open *nodev1.Open, s tunneltest.Session) {
	switch target := open.GetTarget().(type) {
	case *nodev1.Open_Exec:
		switch command := target.Exec.GetCommand(); command[0] {
		case "echo":
			_ = s.Say(nodev1.Channel_CHANNEL_STDOUT, strings.Join(command[1:], " ")+"\n")
			_ = s.Say(nodev1.Channel_CHANNEL_STDERR, "noise")
			_ = s.Exit(0, nil)
		case "exit":
			_ = s.Exit(42, nil)
		case "fail":
			st := apierrors.NewNotFound(schema.GroupResource{Resource: "containers"}, "c").Status()
			_ = s.Exit(0, &st)
		case "broken":
			st := apierrors.NewInternalError(errors.New("error executing command in container: no such file")).Status()
			_ = s.Exit(0, &st)
		case "cat":
			cat(s)
		case "size":
			for {
				m, err := s.Recv()
				if err != nil {
					return
				}
				if r := m.GetResize(); r != nil {
					_ = s.Say(nodev1.Channel_CHANNEL_STDOUT, fmt.Sprintf("%dx%d", r.GetWidth(), r.GetHeight()))
					_ = s.Exit(0, nil)
					return
				}
			}
		case "hang":
			_ = s.Say(nodev1.Channel_CHANNEL_STDOUT, "hanging")
			_, _ = s.Recv()
		}
	case *nodev1.Open_Attach:
		_ = s.Say(nodev1.Channel_CHANNEL_STDOUT, "attached")
		_ = s.Exit(3, nil)
	case *nodev1.Open_Logs:
		_ = s.Say(nodev1.Channel_CHANNEL_STDOUT, fmt.Sprintf("%s tail=%d follow=%t\n", target.Logs.GetPod().GetContainer(), target.Logs.GetTailLines(), target.Logs.GetFollow()))
		_ = s.Exit(0, nil)
	case *nodev1.Open_PortForward:
		if target.PortForward.GetPort() == 81 {
			st := apierrors.NewInternalError(errors.New("connection refused")).Status()
			_ = s.Exit(0, &st)
			return
		}
		cat(s)
	}
}

func cat(s tunneltest.Session) {
	for {
		m, err := s.Recv()
		if err != nil {
			return
		}
		if d := m.GetData(); d != nil {
			_ = s.Say(nodev1.Channel_CHANNEL_STDOUT, string(d.GetPayload()))
		}
		if m.GetCloseChannel() == nodev1.Channel_CHANNEL_STDIN {
			_ = s.Exit(0, nil)
			return
		}
	}
}

func (f *front) connect(t *testing.T) {
	t.Helper()
	tunneltest.Connect(t, f.nodes, "n1", func(open *nodev1.Open) *metav1.Status {
		if l := open.GetLogs(); l.GetPod().GetContainer() == "waiting" {
			st := apierrors.NewBadRequest(`container "waiting" in pod "p" is waiting to start: ContainerCreating`).Status()
			return &st
		}
		return nil
	}, shell)
	eventually(t, "the node connects", func() bool { return f.tunnel.Connected("n1") })
}

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

func (f *front) streamURL(subresource string, q url.Values) *url.URL {
	u, err := url.Parse(f.url + "/api/v1/namespaces/default/pods/p/" + subresource + "?" + q.Encode())
	if err != nil {
		panic(err)
	}
	return u
}

// executors returns kubectl's two ways of streaming.
func (f *front) executors(t *testing.T, subresource string, q url.Values) map[string]remotecommand.Executor {
	t.Helper()
	u := f.streamURL(subresource, q)
	ws, err := remotecommand.NewWebSocketExecutor(f.config, "GET", u.String())
	if err != nil {
		t.Fatal(err)
	}
	sp, err := remotecommand.NewSPDYExecutor(f.config, "POST", u)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]remotecommand.Executor{"websocket": ws, "spdy": sp}
}

type fixedSize struct{ sent bool }

func (s *fixedSize) Next() *remotecommand.TerminalSize {
	if s.sent {
		return nil
	}
	s.sent = true
	return &remotecommand.TerminalSize{Width: 80, Height: 24}
}

func TestExec(t *testing.T) {
	f := newFront(t)
	f.pod("n1", "c")
	f.connect(t)
	large := strings.Repeat("0123456789", 20000)
	for _, tc := range []struct {
		name, stdin, stdout, stderr string
		command                     []string
		tty                         bool
		check                       func(error) bool
	}{
		{name: "output", command: []string{"echo", "a", "b"}, stdout: "a b\n", stderr: "noise"},
		{name: "exit code", command: []string{"exit"}, check: func(err error) bool {
			var exit utilexec.CodeExitError
			return errors.As(err, &exit) && exit.Code == 42
		}},
		{name: "failure", command: []string{"fail"}, check: func(err error) bool {
			return err != nil && strings.Contains(err.Error(), `containers "c" not found`)
		}},
		{name: "failure of the runtime", command: []string{"broken"}, check: func(err error) bool {
			return err != nil && err.Error() == "Internal error occurred: error executing command in container: no such file"
		}},
		{name: "stdin and its end", command: []string{"cat"}, stdin: large, stdout: large},
		{name: "resize", command: []string{"size"}, tty: true, stdout: "80x24"},
	} {
		q := url.Values{"command": tc.command, "stdout": {"true"}, "stderr": {fmt.Sprint(!tc.tty)}, "tty": {fmt.Sprint(tc.tty)}, "stdin": {fmt.Sprint(tc.stdin != "")}}
		for way, executor := range f.executors(t, "exec", q) {
			t.Run(tc.name+"/"+way, func(t *testing.T) {
				var out, errOut bytes.Buffer
				o := remotecommand.StreamOptions{Stdout: &out, Tty: tc.tty}
				if !tc.tty {
					o.Stderr = &errOut
				} else {
					o.TerminalSizeQueue = &fixedSize{}
				}
				if tc.stdin != "" {
					o.Stdin = strings.NewReader(tc.stdin)
				}
				err := executor.StreamWithContext(context.Background(), o)
				if tc.check == nil && err != nil || tc.check != nil && !tc.check(err) {
					t.Errorf("error: %v", err)
				}
				if out.String() != tc.stdout || errOut.String() != tc.stderr {
					t.Errorf("got %d bytes of stdout (want %d), stderr %q", out.Len(), len(tc.stdout), errOut.String())
				}
			})
		}
	}
}

func TestExecEndsWithClient(t *testing.T) {
	f := newFront(t)
	f.pod("n1", "c")
	ended := make(chan struct{}, 2)
	tunneltest.Connect(t, f.nodes, "n1", nil, func(open *nodev1.Open, s tunneltest.Session) {
		shell(open, s)
		ended <- struct{}{}
	})
	eventually(t, "the node connects", func() bool { return f.tunnel.Connected("n1") })
	for way, executor := range f.executors(t, "exec", url.Values{"command": {"hang"}, "stdout": {"1"}, "stderr": {"0"}}) {
		ctx, cancel := context.WithCancel(context.Background())
		r, w := io.Pipe()
		done := make(chan error, 1)
		go func() { done <- executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: w}) }()
		if _, err := io.ReadFull(r, make([]byte, len("hanging"))); err != nil {
			t.Fatal(err)
		}
		cancel()
		<-done
		select {
		case <-ended:
		case <-time.After(60 * time.Second):
			t.Fatalf("%s: the session outlived its client", way)
		}
	}
}

func TestExecEndsWhenRightsAreLost(t *testing.T) {
	f := newFront(t)
	f.pod("n1", "c")
	ended := make(chan struct{}, 2)
	tunneltest.Connect(t, f.nodes, "n1", nil, func(open *nodev1.Open, s tunneltest.Session) {
		shell(open, s)
		ended <- struct{}{}
	})
	eventually(t, "the node connects", func() bool { return f.tunnel.Connected("n1") })
	for way, executor := range f.executors(t, "exec", url.Values{"command": {"hang"}, "stdout": {"1"}, "stderr": {"0"}}) {
		r, w := io.Pipe()
		done := make(chan error, 1)
		go func() {
			done <- executor.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdout: w})
		}()
		if _, err := io.ReadFull(r, make([]byte, len("hanging"))); err != nil {
			t.Fatal(err)
		}
		f.fake.mu.Lock()
		for _, end := range f.fake.held {
			end()
		}
		f.fake.mu.Unlock()
		for what, end := range map[string]func() bool{
			"session": func() bool { return len(ended) > 0 }, "client": func() bool { return len(done) > 0 },
		} {
			eventually(t, way+": the "+what+" ends", end)
		}
		<-ended
	}
}

func TestAttach(t *testing.T) {
	f := newFront(t)
	f.pod("n1", "c")
	f.connect(t)
	for way, executor := range f.executors(t, "attach", url.Values{"stdout": {"1"}, "stderr": {"0"}}) {
		var out bytes.Buffer
		err := executor.StreamWithContext(context.Background(), remotecommand.StreamOptions{Stdout: &out})
		if out.String() != "attached" || way == "spdy" && err != nil {
			t.Errorf("%s: %q, %v", way, out.String(), err)
		}
	}
}

// TestExecOldWebSocket uses the protocol of the conformance suite's client, the predecessor of
// v4.
func TestExecOldWebSocket(t *testing.T) {
	f := newFront(t)
	f.pod("n1", "c")
	f.connect(t)
	config, err := websocket.NewConfig(strings.Replace(f.streamURL("exec", url.Values{"command": {"echo", "hi"}, "stdout": {"1"}, "stderr": {"1"}}).String(), "http", "ws", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"channel.k8s.io"}
	config.Header.Set("Authorization", "Bearer admin")
	ws, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	got := map[byte]string{}
	for {
		var m []byte
		if websocket.Message.Receive(ws, &m) != nil {
			break
		}
		got[m[0]] += string(m[1:])
	}
	if got[1] != "hi\n" || got[2] != "noise" {
		t.Errorf("got %q", got)
	}
}

// TestHugeFrames checks that a frame with a length of 1 GiB ends the connection without being
// allocated.
func TestHugeFrames(t *testing.T) {
	f := newFront(t)
	f.pod("n1", "c")
	f.connect(t)
	for name, tc := range map[string]struct {
		subresource string
		query       url.Values
		protocol    string
	}{
		"exec v5":                {"exec", url.Values{"command": {"cat"}, "stdin": {"1"}, "stdout": {"1"}}, "v5.channel.k8s.io"},
		"exec v4":                {"exec", url.Values{"command": {"cat"}, "stdin": {"1"}, "stdout": {"1"}}, "v4.channel.k8s.io"},
		"attach":                 {"attach", url.Values{"stdin": {"1"}, "stdout": {"1"}}, "v5.channel.k8s.io"},
		"port-forward":           {"portforward", url.Values{"port": {"80"}}, "v4.channel.k8s.io"},
		"port-forward over SPDY": {"portforward", nil, "SPDY/3.1+portforward.k8s.io"},
	} {
		t.Run(name, func(t *testing.T) {
			u := f.streamURL(tc.subresource, tc.query)
			conn, err := net.Dial("tcp", u.Host)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer admin\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
				"Origin: http://localhost\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Protocol: %s\r\n\r\n",
				u.RequestURI(), u.Host, tc.protocol)
			r := bufio.NewReader(conn)
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
				t.Fatal(resp, err)
			}
			_ = resp.Body.Close()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			// A masked binary frame with a 64-bit length.
			frame := append(binary.BigEndian.AppendUint64([]byte{0x82, 0xff}, 1<<30), 0, 0, 0, 0, 0)
			if _, err := conn.Write(frame); err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal("the connection was not closed")
			}
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
				t.Errorf("allocated %d bytes", n)
			}
		})
	}
}

func TestLogOverWebSocket(t *testing.T) {
	f := newFront(t)
	f.pod("n1", "c")
	f.connect(t)
	config, err := websocket.NewConfig(strings.Replace(f.streamURL("log", url.Values{"tailLines": {"5"}}).String(), "http", "ws", 1), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"binary.k8s.io"}
	ws, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	var got string
	for {
		var m []byte
		if websocket.Message.Receive(ws, &m) != nil {
			break
		}
		got += string(m)
	}
	if got != "c tail=5 follow=false\n" {
		t.Errorf("got %q", got)
	}
}

func TestLog(t *testing.T) {
	f := newFront(t)
	f.pod("n1", "c", "waiting")
	f.connect(t)
	client := kubernetes.NewForConfigOrDie(f.config).CoreV1().Pods("default")
	get := func(o *corev1.PodLogOptions) (string, error) {
		stream, err := client.GetLogs("p", o).Stream(context.Background())
		if err != nil {
			return "", err
		}
		defer stream.Close()
		raw, err := io.ReadAll(stream)
		return string(raw), err
	}
	five := int64(5)
	if text, err := get(&corev1.PodLogOptions{Container: "c", TailLines: &five, Follow: true}); err != nil || text != "c tail=5 follow=true\n" {
		t.Errorf("%q, %v", text, err)
	}
	minus := int64(-1)
	now := metav1.Now()
	stderr := corev1.LogStreamStderr
	odd := "Both"
	for name, tc := range map[string]struct {
		options corev1.PodLogOptions
		code    int32
		text    string
	}{
		"no container name": {corev1.PodLogOptions{}, 400, "a container name must be specified for pod p, choose one of: [c waiting]"},
		"unknown container": {corev1.PodLogOptions{Container: "x"}, 400, "container x is not valid for pod p"},
		"waiting":           {corev1.PodLogOptions{Container: "waiting"}, 400, `container "waiting" in pod "p" is waiting to start: ContainerCreating`},
		"tail":              {corev1.PodLogOptions{Container: "c", TailLines: &minus}, 422, `PodLogOptions "p" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0`},
		"limit":             {corev1.PodLogOptions{Container: "c", LimitBytes: &minus}, 422, "limitBytes: Invalid value: -1: must be greater than 0"},
		"two since options": {corev1.PodLogOptions{Container: "c", SinceSeconds: &five, SinceTime: &now}, 422, "at most one of `sinceTime` or `sinceSeconds` may be specified"},
		"stream":            {corev1.PodLogOptions{Container: "c", Stream: &odd}, 422, `stream: Unsupported value: "Both"`},
		"stream and tail":   {corev1.PodLogOptions{Container: "c", Stream: &stderr, TailLines: &five}, 422, "mutually exclusive"},
	} {
		_, err := get(&tc.options)
		var status apierrors.APIStatus
		if !errors.As(err, &status) || status.Status().Code != tc.code || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStreamRefusals checks requests that never become streams.
func TestStreamRefusals(t *testing.T) {
	f := newFront(t)
	f.pod("", "c")
	f.fake.deny = func(verb string, target pipeline.Target, user request.User) error {
		if user.Name == "system:apiserver" || user.Name == "admin" || user.Name == "reader" && verb == "get" {
			return nil
		}
		return apierrors.NewForbidden(schema.GroupResource{Resource: "pods/" + target.Subresource}, target.Name, errors.New(verb+" is not allowed"))
	}
	do := func(user, method, subresource, q string, upgrade string) (int, string) {
		r, err := http.NewRequest(method, f.url+"/api/v1/namespaces/default/pods/p/"+subresource+"?"+q, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+user)
		if upgrade != "" {
			r.Header.Set("Connection", "Upgrade")
			r.Header.Set("Upgrade", upgrade)
			r.Header.Set("Sec-WebSocket-Protocol", "v5.channel.k8s.io")
			r.Header.Set("Sec-WebSocket-Version", "13")
			r.Header.Set("Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA==")
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	for _, tc := range []struct {
		name, user, method, subresource, query, upgrade string
		code                                            int
		text                                            string
	}{
		{"no upgrade", "admin", "POST", "exec", "command=a", "", 400, "Upgrade request required"},
		{"not scheduled", "admin", "POST", "exec", "command=a", "SPDY/3.1", 400, "pod p does not have a host assigned"},
		{"log of an unscheduled pod", "admin", "GET", "log", "", "", 204, ""},
		{"forbidden", "nobody", "POST", "exec", "command=a", "SPDY/3.1", 403, "create is not allowed"},
		{"a websocket needs create", "reader", "GET", "exec", "command=a", "websocket", 403, "create is not allowed"},
		{"a log does not need create", "reader", "GET", "log", "", "", 204, ""},
		{"method", "admin", "PUT", "exec", "", "", 405, "does not allow this method"},
		{"proxy without the right", "nobody", "DELETE", "proxy/a/b", "", "", 403, "delete is not allowed"},
	} {
		code, body := do(tc.user, tc.method, tc.subresource, tc.query, tc.upgrade)
		if code != tc.code || !strings.Contains(body, tc.text) {
			t.Errorf("%s: %d %s", tc.name, code, body)
		}
	}
	resp, err := http.Get(f.url + "/api/v1/nodes/n1/proxy/logs")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a node's proxy without the right: %d", resp.StatusCode)
	}
	f.fake.deny = nil
	f.pod("n1", "c")
	for _, tc := range []struct {
		name, query string
		code        int
		text        string
	}{
		{"node not connected", "command=a", 503, "node n1: node is not connected"},
		{"no command", "", 400, "you must specify at least one command for the container"},
		{"no streams", "command=a&stdout=0&stderr=false", 400, "you must specify at least 1 of stdin, stdout, stderr"},
		{"container", "command=a&container=x", 400, "container x is not valid for pod p"},
	} {
		code, body := do("admin", "POST", "exec", tc.query, "SPDY/3.1")
		if code != tc.code || !strings.Contains(body, tc.text) {
			t.Errorf("%s: %d %s", tc.name, code, body)
		}
	}
}

func TestPortForward(t *testing.T) {
	f := newFront(t)
	f.pod("n1", "c")
	f.connect(t)
	u := f.streamURL("portforward", nil)
	tunneled, err := portforward.NewSPDYOverWebsocketDialer(u, f.config)
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(f.config)
	if err != nil {
		t.Fatal(err)
	}
	for way, dialer := range map[string]httpstream.Dialer{
		"websocket": tunneled,
		"spdy":      spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u),
	} {
		t.Run(way, func(t *testing.T) {
			stop, ready := make(chan struct{}), make(chan struct{})
			defer close(stop)
			forwarder, err := portforward.New(dialer, []string{"0:80", "0:81"}, stop, ready, io.Discard, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- forwarder.ForwardPorts() }()
			select {
			case <-ready:
			case err := <-done:
				t.Fatal(err)
			}
			ports, err := forwarder.GetPorts()
			if err != nil {
				t.Fatal(err)
			}
			for range 3 { // several connections, sequential and concurrent
				conns := make([]net.Conn, 4)
				for i := range conns {
					if conns[i], err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local)); err != nil {
						t.Fatal(err)
					}
					fmt.Fprintf(conns[i], "hello %d", i)
				}
				for i, c := range conns {
					if err := c.(*net.TCPConn).CloseWrite(); err != nil {
						t.Error(err)
					}
					got, err := io.ReadAll(c)
					if want := fmt.Sprintf("hello %d", i); err != nil || string(got) != want {
						t.Errorf("got %q, %v", got, err)
					}
					c.Close()
				}
			}
			c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[1].Local))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, _ = io.ReadAll(c)
			// The client gives up the entire connection at the first refusal.
			select {
			case err := <-done:
				if !errors.Is(err, portforward.ErrLostConnectionToPod) {
					t.Error(err)
				}
			case <-time.After(60 * time.Second):
				t.Error("the client did not notice the refusal")
			}
		})
	}
}

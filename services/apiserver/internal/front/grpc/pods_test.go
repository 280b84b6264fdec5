package grpc_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.dev/proto/apistatus"
	nodev1 "keelson.dev/proto/keelson/node/v1"
	podv1 "keelson.dev/proto/keelson/pod/v1"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/fieldmanager"
	front "keelson.dev/services/apiserver/internal/front/grpc"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/pipeline"
	"keelson.dev/services/apiserver/internal/request"
	"keelson.dev/services/apiserver/internal/resource"
	"keelson.dev/services/apiserver/internal/store/memory"
	"keelson.dev/services/apiserver/internal/tunnel"
	"keelson.dev/services/apiserver/internal/tunnel/tunneltest"
	"keelson.dev/services/apiserver/internal/watchcache"
	"keelson.dev/services/internal/rpc"
	"keelson.dev/services/internal/telemetry"
)

// byName authenticates by a token that is the user's name.
type byName struct{}

func (byName) Authenticate(_ context.Context, _ []*x509.Certificate, token string) (request.User, error) {
	return request.User{Name: token, Groups: []string{"system:authenticated"}}, nil
}

// pods is a running PodService with a node. The user "operator" may use all streams in the namespace
// "default", and "reader" may read pods.
type pods struct {
	podv1.PodServiceClient
	rights *authz.Authorizers
	tunnel *tunnel.Server
	nodes  nodev1.TunnelServiceClient
	stop   func() // stops the server, and returns at once
	opened chan *nodev1.Open
	closed chan struct{} // one for each session that has ended
}

func servePods(t *testing.T, change ...func(*front.PodService)) *pods {
	t.Helper()
	if _, err := telemetry.Start(context.Background(), telemetry.Config{Service: "apiserver"}); err != nil {
		t.Fatal(err)
	}
	st := memory.New()
	table := resource.NewTable(kind.All()...)
	var stored []*resource.Kind
	for _, k := range table.Kinds() {
		if k.StorePrefix != "" && k.StoredAs == nil {
			stored = append(stored, k)
		}
	}
	cache := watchcache.New(watchcache.Config{Store: st, Kinds: stored, HistoryEvents: 100, HistoryMin: 10})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 3)
	go func() { _ = cache.Run(ctx); done <- struct{}{} }()
	<-cache.Ready()
	p := &pods{rights: authz.New(), tunnel: tunnel.New(tunnel.Config{}), opened: make(chan *nodev1.Open, 100), closed: make(chan struct{}, 100)}
	p.rights.RBAC.SetRole("", "streams", []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"pods/log"}, Verbs: []string{"get"}},
		{APIGroups: []string{""}, Resources: []string{"pods/exec", "pods/attach", "pods/portforward"}, Verbs: []string{"create"}},
	})
	p.rights.RBAC.SetRole("", "reads", []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods", "pods/exec", "pods/attach", "pods/portforward"}, Verbs: []string{"get", "list"}}})
	p.bind("streams", "operator")
	p.bind("reads", "reader")
	api := pipeline.New(pipeline.Config{
		Table: table, Lasting: pipeline.Place{Store: st, Cache: cache}, Authorizer: p.rights, RulesChanged: p.rights.RBAC.Changed, Fields: fieldmanager.New(table),
	})
	go func() { _ = api.Recheck(ctx); done <- struct{}{} }()
	asAdmin := request.WithUser(ctx, request.User{Name: "admin", Groups: []string{"system:masters"}})
	for name, node := range map[string]string{"p": "n1", "lost": "n2", "waiting": ""} {
		pod := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q},"spec":{"nodeName":%q,"containers":[{"name":"c","image":"i"},{"name":"d","image":"i"}],"initContainers":[{"name":"init","image":"i"}]}}`, name, node)
		_, err := api.Create(asAdmin, pipeline.Target{Resource: corev1.SchemeGroupVersion.WithResource("pods"), Namespace: "default"},
			pipeline.Body{Data: []byte(pod), Type: pipeline.JSON}, pipeline.WriteOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	server := rpc.NewServer(rpc.ServerConfig{
		Authenticate: front.Authentication(byName{}, p.rights), Root: front.Writes, Endless: front.Endless, MaxMessage: front.MaxMessage, Codec: front.NewCodec(),
	})
	service := front.NewPodService(api, p.tunnel)
	for _, c := range change {
		c(service)
	}
	podv1.RegisterPodServiceServer(server, service)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	serving, stop := context.WithCancel(ctx)
	p.stop = stop
	go func() { _ = server.Serve(serving, l); done <- struct{}{} }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	p.PodServiceClient = podv1.NewPodServiceClient(conn)
	t.Cleanup(func() {
		_ = conn.Close()
		cancel()
		for range cap(done) {
			<-done
		}
		st.Close()
	})
	p.nodes = tunneltest.Serve(t, p.tunnel)
	return p
}

func (p *pods) bind(role, user string) {
	p.rights.RBAC.SetBinding("default", role, rbacv1.RoleRef{Kind: "ClusterRole", Name: role}, []rbacv1.Subject{{Kind: "User", Name: user}})
}

// connect connects the node n1.
func (p *pods) connect(t *testing.T, serve func(*nodev1.Open, tunneltest.Session)) *tunneltest.Node {
	t.Helper()
	node := tunneltest.Connect(t, p.nodes, "n1", nil, func(open *nodev1.Open, s tunneltest.Session) {
		p.opened <- open
		serve(open, s)
		p.closed <- struct{}{}
	})
	eventually(t, "the node connects", func() bool { return p.tunnel.Connected("n1") })
	return node
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
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

func receiveWithin[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(time.Minute):
		t.Fatalf("timed out: %s", what)
		panic("not reached")
	}
}

func as(t *testing.T, user string) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+user)
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
		case "die": // without an Exit
		case "cat":
			cat(s, false)
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
			_, _ = s.Recv()
		}
	case *nodev1.Open_Attach:
		_ = s.Say(nodev1.Channel_CHANNEL_STDOUT, "attached")
		_ = s.Exit(3, nil)
	case *nodev1.Open_Logs:
		if target.Logs.GetFollow() {
			_ = s.Say(nodev1.Channel_CHANNEL_STDOUT, "following")
			_, _ = s.Recv()
			return
		}
		_ = s.Say(nodev1.Channel_CHANNEL_STDOUT, strings.Repeat("x", 40<<10)) // a node may not, but a message may not grow either
		_ = s.Exit(0, nil)
	case *nodev1.Open_PortForward:
		if target.PortForward.GetPort() == 81 {
			st := apierrors.NewInternalError(errors.New("connection refused")).Status()
			_ = s.Exit(0, &st)
			return
		}
		cat(s, true)
	}
}

// cat sends back what it receives. With halfClose, it ends its own direction first.
func cat(s tunneltest.Session, halfClose bool) {
	for {
		m, err := s.Recv()
		if err != nil {
			return
		}
		if d := m.GetData(); d != nil {
			_ = s.Say(nodev1.Channel_CHANNEL_STDOUT, string(d.GetPayload()))
		}
		if m.GetCloseChannel() == nodev1.Channel_CHANNEL_STDIN {
			if halfClose {
				_ = s.Send(&nodev1.SessionRequest{Message: &nodev1.SessionRequest_CloseChannel{CloseChannel: nodev1.Channel_CHANNEL_STDOUT}})
			}
			_ = s.Exit(0, nil)
			return
		}
	}
}

func execStart(s *podv1.ExecStart) *podv1.ExecRequest {
	if s.GetContainer() == nil {
		s.Container = &podv1.ContainerRef{Namespace: "default", Pod: "p", Container: "c"}
	}
	return &podv1.ExecRequest{Message: &podv1.ExecRequest_Start{Start: s}}
}

func stdin(p []byte) *podv1.ExecRequest {
	return &podv1.ExecRequest{Message: &podv1.ExecRequest_Stdin{Stdin: p}}
}

// execution is what an Exec sent.
type execution struct {
	started        bool
	stdout, stderr string
	exit           *podv1.Exit
}

// drain reads an Exec to its end.
func drain(stream podv1.PodService_ExecClient) (execution, error) {
	var x execution
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return x, nil
		}
		if err != nil {
			return x, err
		}
		x.started = x.started || m.GetStarted() != nil
		x.stdout += string(m.GetStdout())
		x.stderr += string(m.GetStderr())
		if m.GetExit() != nil {
			x.exit = m.GetExit()
		}
	}
}

// exec runs an Exec with the given messages after the start.
func (p *pods) exec(t *testing.T, user string, messages ...*podv1.ExecRequest) (execution, error) {
	t.Helper()
	stream, err := p.Exec(as(t, user))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if err := stream.Send(m); err != nil {
			break // drain returns why
		}
	}
	_ = stream.CloseSend()
	return drain(stream)
}

func TestPodExec(t *testing.T) {
	p := servePods(t)
	p.connect(t, shell)
	large := bytes.Repeat([]byte("0123456789abcdef"), 16<<10)
	feed := []*podv1.ExecRequest{execStart(&podv1.ExecStart{Command: []string{"cat"}, Stdin: true})}
	for piece := range 8 {
		feed = append(feed, stdin(large[piece*32<<10:(piece+1)*32<<10]))
	}
	ended := append(feed[:len(feed):len(feed)], &podv1.ExecRequest{Message: &podv1.ExecRequest_StdinEnd{StdinEnd: &podv1.StdinEnd{}}})
	size := &podv1.ExecRequest{Message: &podv1.ExecRequest_Resize{Resize: &podv1.TerminalSize{Columns: 80, Rows: 24}}}
	for name, tc := range map[string]struct {
		messages       []*podv1.ExecRequest
		stdout, stderr string
		code           int32
	}{
		"output":               {messages: []*podv1.ExecRequest{execStart(&podv1.ExecStart{Command: []string{"echo", "a", "b"}})}, stdout: "a b\n", stderr: "noise"},
		"exit code":            {messages: []*podv1.ExecRequest{execStart(&podv1.ExecStart{Command: []string{"exit"}})}, code: 42},
		"stdin and half-close": {messages: feed, stdout: string(large)},
		"stdin and its end":    {messages: ended, stdout: string(large)},
		"resize":               {messages: []*podv1.ExecRequest{execStart(&podv1.ExecStart{Command: []string{"size"}, Tty: true}), size}, stdout: "80x24"},
	} {
		t.Run(name, func(t *testing.T) {
			x, err := p.exec(t, "operator", tc.messages...)
			if err != nil || !x.started || x.exit == nil || x.exit.GetCode() != tc.code || x.stdout != tc.stdout || x.stderr != tc.stderr {
				t.Errorf("%v: started %t, exit %v (want %d), %d bytes of stdout (want %d), stderr %q", err, x.started, x.exit, tc.code, len(x.stdout), len(tc.stdout), x.stderr)
			}
		})
	}
	for command, want := range map[string]codes.Code{"fail": codes.NotFound, "die": codes.Unavailable} {
		x, err := p.exec(t, "operator", execStart(&podv1.ExecStart{Command: []string{command}}))
		if status.Code(err) != want || apistatus.FromGRPC(status.Convert(err)) == nil || x.exit != nil {
			t.Errorf("%s: %v, %v; want %s with a Status", command, x.exit, err, want)
		}
	}
}

func TestPodLogs(t *testing.T) {
	p := servePods(t)
	p.connect(t, shell)
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	five, since := int64(5), time.Unix(1700000000, 5)
	stream, err := p.Logs(metadata.AppendToOutgoingContext(as(t, "operator"), "traceparent", trace), &podv1.LogsRequest{
		Container: &podv1.ContainerRef{Namespace: "default", Pod: "p", Container: "d"},
		Previous:  true, Timestamps: true, TailLines: &five, LimitBytes: &five, SinceTime: timestamppb.New(since),
	})
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || len(m.GetData()) == 0 || len(m.GetData()) > 32<<10 {
			t.Fatalf("%d bytes, %v", len(m.GetData()), err)
		}
		total += len(m.GetData())
	}
	if total != 40<<10 {
		t.Errorf("%d bytes", total)
	}
	open := receiveWithin(t, "the session", p.opened)
	if l := open.GetLogs(); l.GetPod().GetContainer() != "d" || !l.GetPrevious() || !l.GetTimestamps() || l.GetTailLines() != 5 || l.GetLimitBytes() != 5 || l.GetSinceTimeUnixNano() != since.UnixNano() {
		t.Errorf("the node was asked for %v", l)
	}
	if !strings.HasPrefix(open.GetTraceparent(), trace[:36]) {
		t.Errorf("traceparent %q is not of the trace of %q", open.GetTraceparent(), trace)
	}
	// A pod without a node has an empty log.
	stream, err = p.Logs(as(t, "operator"), &podv1.LogsRequest{Container: &podv1.ContainerRef{Namespace: "default", Pod: "waiting", Container: "c"}})
	if err == nil {
		_, err = stream.Recv()
	}
	if !errors.Is(err, io.EOF) {
		t.Errorf("log of a pod without a node: %v", err)
	}
}

func TestPodAttach(t *testing.T) {
	p := servePods(t)
	p.connect(t, shell)
	stream, err := p.Attach(as(t, "operator"))
	if err == nil {
		err = stream.Send(&podv1.AttachRequest{Message: &podv1.AttachRequest_Start{Start: &podv1.AttachStart{Container: &podv1.ContainerRef{Namespace: "default", Pod: "p", Container: "c"}}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	var out string
	for err == nil {
		var m *podv1.AttachResponse
		m, err = stream.Recv()
		out += string(m.GetStdout())
	}
	if !errors.Is(err, io.EOF) || out != "attached" {
		t.Errorf("%q, %v", out, err)
	}
}

// forward opens a PortForward.
func (p *pods) forward(t *testing.T, user string, port int32) podv1.PodService_PortForwardClient {
	t.Helper()
	stream, err := p.PortForward(as(t, user))
	if err == nil {
		err = stream.Send(&podv1.PortForwardRequest{Message: &podv1.PortForwardRequest_Start{Start: &podv1.PortForwardStart{Namespace: "default", Pod: "p", Port: port}}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

func TestPodPortForward(t *testing.T) {
	p := servePods(t)
	p.connect(t, shell)
	stream := p.forward(t, "operator", 80)
	if m, err := stream.Recv(); err != nil || m.GetStarted() == nil {
		t.Fatal(m, err)
	}
	for _, text := range []string{"hello", "again"} {
		if err := stream.Send(&podv1.PortForwardRequest{Message: &podv1.PortForwardRequest_Data{Data: []byte(text)}}); err != nil {
			t.Fatal(err)
		}
		if m, err := stream.Recv(); err != nil || string(m.GetData()) != text {
			t.Fatalf("%v, %v; want %q", m, err, text)
		}
	}
	_ = stream.CloseSend()
	if m, err := stream.Recv(); err != nil || m.GetDataEnd() == nil {
		t.Errorf("after the half-close: %v, %v; want the node's", m, err)
	}
	if m, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after both: %v, %v", m, err)
	}
	stream = p.forward(t, "operator", 81)
	_, err := stream.Recv()
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "connection refused") || apistatus.FromGRPC(status.Convert(err)) == nil {
		t.Errorf("a closed port: %v", err)
	}
}

func TestPodRefusals(t *testing.T) {
	p := servePods(t, func(s *front.PodService) { s.StartTimeout = 100 * time.Millisecond })
	p.connect(t, shell)
	at := func(pod, container string) *podv1.ContainerRef {
		return &podv1.ContainerRef{Namespace: "default", Pod: pod, Container: container}
	}
	logs := func(user string, r *podv1.LogsRequest) func(*testing.T) error {
		return func(t *testing.T) error {
			stream, err := p.Logs(as(t, user), r)
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}
	}
	exec := func(user string, messages ...*podv1.ExecRequest) func(*testing.T) error {
		return func(t *testing.T) error {
			_, err := p.exec(t, user, messages...)
			return err
		}
	}
	attach := func(user string, start *podv1.AttachStart) func(*testing.T) error {
		return func(t *testing.T) error {
			stream, err := p.Attach(as(t, user))
			if err == nil {
				_ = stream.Send(&podv1.AttachRequest{Message: &podv1.AttachRequest_Start{Start: start}})
				_, err = stream.Recv()
			}
			return err
		}
	}
	forward := func(user string, port int32) func(*testing.T) error {
		return func(t *testing.T) error {
			_, err := p.forward(t, user, port).Recv()
			return err
		}
	}
	echo := &podv1.ExecStart{Command: []string{"echo"}}
	hang := &podv1.ExecStart{Command: []string{"hang"}}
	zero, one := int64(0), int64(1)
	for name, tc := range map[string]struct {
		call func(*testing.T) error
		want codes.Code
		text string
	}{
		"logs without the right":          {logs("reader", &podv1.LogsRequest{Container: at("p", "c")}), codes.PermissionDenied, "pods/log"},
		"exec with get only":              {exec("reader", execStart(echo)), codes.PermissionDenied, "pods/exec"},
		"attach with get only":            {attach("reader", &podv1.AttachStart{Container: at("p", "c")}), codes.PermissionDenied, "pods/attach"},
		"port-forward with get only":      {forward("reader", 80), codes.PermissionDenied, "pods/portforward"},
		"unknown pod without the right":   {logs("stranger", &podv1.LogsRequest{Container: at("none", "c")}), codes.PermissionDenied, "pods/log"},
		"other namespace":                 {logs("operator", &podv1.LogsRequest{Container: &podv1.ContainerRef{Namespace: "kube-system", Pod: "p"}}), codes.PermissionDenied, "kube-system"},
		"unknown pod":                     {logs("operator", &podv1.LogsRequest{Container: at("none", "c")}), codes.NotFound, "none"},
		"container not named":             {logs("operator", &podv1.LogsRequest{Container: at("p", "")}), codes.InvalidArgument, "choose one of: [c d] or one of the init containers: [init]"},
		"unknown container":               {exec("operator", execStart(&podv1.ExecStart{Container: at("p", "x"), Command: []string{"echo"}})), codes.InvalidArgument, "container x is not valid"},
		"invalid log options":             {logs("operator", &podv1.LogsRequest{Container: at("p", "c"), LimitBytes: &zero, SinceSeconds: &one, SinceTime: timestamppb.Now()}), codes.InvalidArgument, "limitBytes"},
		"invalid since_time":              {logs("operator", &podv1.LogsRequest{Container: at("p", "c"), SinceTime: &timestamppb.Timestamp{Nanos: -1}}), codes.InvalidArgument, "since_time"},
		"unknown stream":                  {logs("operator", &podv1.LogsRequest{Container: at("p", "c"), Stream: 7}), codes.InvalidArgument, "Unsupported value"},
		"no node":                         {exec("operator", execStart(&podv1.ExecStart{Container: at("waiting", "c"), Command: []string{"echo"}})), codes.InvalidArgument, "does not have a host assigned"},
		"node not connected":              {exec("operator", execStart(&podv1.ExecStart{Container: at("lost", "c"), Command: []string{"echo"}})), codes.Unavailable, "not connected"},
		"no command":                      {exec("operator", execStart(&podv1.ExecStart{})), codes.InvalidArgument, "at least one command"},
		"port out of range":               {forward("operator", 65536), codes.InvalidArgument, "65536"},
		"no start":                        {exec("operator"), codes.InvalidArgument, "must be a start"},
		"stdin before the start":          {exec("operator", stdin([]byte("x"))), codes.InvalidArgument, "must be a start"},
		"start too large":                 {exec("operator", execStart(&podv1.ExecStart{Command: []string{strings.Repeat("x", 65<<10)}})), codes.ResourceExhausted, "65536"},
		"stdin too large":                 {exec("operator", execStart(&podv1.ExecStart{Command: []string{"cat"}, Stdin: true}), stdin(make([]byte, 65<<10))), codes.ResourceExhausted, "65536"},
		"stdin that was not asked for":    {exec("operator", execStart(hang), stdin([]byte("x"))), codes.InvalidArgument, "did not ask"},
		"second start":                    {exec("operator", execStart(&podv1.ExecStart{Command: []string{"hang"}, Stdin: true}), execStart(echo)), codes.InvalidArgument, "after the start"},
		"resize without a terminal":       {exec("operator", execStart(hang), &podv1.ExecRequest{Message: &podv1.ExecRequest_Resize{Resize: &podv1.TerminalSize{}}}), codes.InvalidArgument, "no terminal"},
		"resize beyond what terminals do": {exec("operator", execStart(&podv1.ExecStart{Command: []string{"hang"}, Tty: true}), &podv1.ExecRequest{Message: &podv1.ExecRequest_Resize{Resize: &podv1.TerminalSize{Columns: 65536}}}), codes.InvalidArgument, "65535"},
		"start that does not come": {func(t *testing.T) error {
			stream, err := p.Exec(as(t, "operator"))
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}, codes.DeadlineExceeded, "no start"},
	} {
		t.Run(name, func(t *testing.T) {
			err := tc.call(t)
			if status.Code(err) != tc.want || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%v; want %s with %q", err, tc.want, tc.text)
			}
			if tc.want != codes.ResourceExhausted && apistatus.FromGRPC(status.Convert(err)) == nil {
				t.Errorf("%v has no Status", err)
			}
		})
	}
}

// TestPodStreamsEnd checks what ends a stream, and that the session on the node ends with it.
func TestPodStreamsEnd(t *testing.T) {
	hang := func(t *testing.T, p *pods) (podv1.PodService_ExecClient, context.CancelFunc) {
		t.Helper()
		ctx, cancel := context.WithCancel(as(t, "operator"))
		t.Cleanup(cancel)
		stream, err := p.Exec(ctx)
		if err == nil {
			err = stream.Send(execStart(&podv1.ExecStart{Command: []string{"hang"}}))
		}
		if err != nil {
			t.Fatal(err)
		}
		if m, err := stream.Recv(); err != nil || m.GetStarted() == nil {
			t.Fatal(m, err)
		}
		return stream, cancel
	}
	for name, tc := range map[string]struct {
		end  func(t *testing.T, p *pods, node *tunneltest.Node, cancel context.CancelFunc)
		want codes.Code
		idle time.Duration
	}{
		"client": {func(_ *testing.T, _ *pods, _ *tunneltest.Node, cancel context.CancelFunc) { cancel() }, codes.Canceled, 0},
		"right": {func(_ *testing.T, p *pods, _ *tunneltest.Node, _ context.CancelFunc) {
			p.rights.RBAC.RemoveBinding("default", "streams")
		}, codes.PermissionDenied, 0},
		"node":      {func(_ *testing.T, _ *pods, node *tunneltest.Node, _ context.CancelFunc) { node.Stop() }, codes.Unavailable, 0},
		"server":    {func(_ *testing.T, p *pods, _ *tunneltest.Node, _ context.CancelFunc) { p.stop() }, codes.Unavailable, 0},
		"idle time": {func(*testing.T, *pods, *tunneltest.Node, context.CancelFunc) {}, codes.DeadlineExceeded, 100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			p := servePods(t, func(s *front.PodService) {
				if tc.idle > 0 {
					s.IdleTimeout = tc.idle
				}
			})
			node := p.connect(t, shell)
			stream, cancel := hang(t, p)
			tc.end(t, p, node, cancel)
			if _, err := drain(stream); status.Code(err) != tc.want {
				t.Errorf("%v; want %s", err, tc.want)
			}
			receiveWithin(t, "the session ends", p.closed)
		})
	}
	// The end of a log means that it is complete, so it is another when the server stops.
	p := servePods(t)
	p.connect(t, shell)
	stream, err := p.Logs(as(t, "operator"), &podv1.LogsRequest{Container: &podv1.ContainerRef{Namespace: "default", Pod: "p", Container: "c"}, Follow: true})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	p.stop()
	if m, err := stream.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("a followed log ends with %v, %v when the server stops", m, err)
	}
}

// TestPodStreamsAreNotBuffered checks that a receiver that does not read stops the sender, in both
// directions.
func TestPodStreamsAreNotBuffered(t *testing.T) {
	const limit, most = 64 << 20, 8 << 20
	piece := make([]byte, 32<<10)
	// settled returns what was sent when the sender has made no progress for a while. A sender
	// that is only slow has sent less, not more.
	settled := func(t *testing.T, sent *atomic.Int64) int64 {
		last, same := int64(-1), 0
		eventually(t, "the sender is stopped", func() bool {
			now := sent.Load()
			if same++; now != last || now == 0 {
				last, same = now, 0
			}
			return same > 60
		})
		return last
	}
	t.Run("from the node", func(t *testing.T) {
		p := servePods(t)
		var sent atomic.Int64
		p.connect(t, func(_ *nodev1.Open, s tunneltest.Session) {
			for sent.Load() < limit && s.Say(nodev1.Channel_CHANNEL_STDOUT, string(piece)) == nil {
				sent.Add(int64(len(piece)))
			}
		})
		ctx, cancel := context.WithCancel(as(t, "operator"))
		defer cancel()
		stream, err := p.Exec(ctx)
		if err == nil {
			err = stream.Send(execStart(&podv1.ExecStart{Command: []string{"yes"}}))
		}
		if err != nil {
			t.Fatal(err)
		}
		if n := settled(t, &sent); n > most {
			t.Errorf("the node sent %d bytes to a client that reads nothing", n)
		}
		cancel()
		receiveWithin(t, "the session ends", p.closed)
	})
	t.Run("from the client", func(t *testing.T) {
		p := servePods(t)
		p.connect(t, func(_ *nodev1.Open, s tunneltest.Session) { <-s.Context().Done() })
		ctx, cancel := context.WithCancel(as(t, "operator"))
		defer cancel()
		stream := must(p.Exec(ctx))
		if err := stream.Send(execStart(&podv1.ExecStart{Command: []string{"cat"}, Stdin: true})); err != nil {
			t.Fatal(err)
		}
		var sent atomic.Int64
		done := make(chan struct{})
		go func() {
			defer close(done)
			for sent.Load() < limit && stream.Send(stdin(piece)) == nil {
				sent.Add(int64(len(piece)))
			}
		}()
		if n := settled(t, &sent); n > most {
			t.Errorf("the client sent %d bytes to a command that reads nothing", n)
		}
		cancel()
		receiveWithin(t, "the client's sender ends", done)
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

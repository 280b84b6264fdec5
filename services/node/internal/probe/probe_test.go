package probe

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	grpccodes "google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	grpcstatus "google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/node/internal/cri"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestMachine checks the thresholds. Each step is an outcome ('+' or '-') and the verdict
// after it ('?' for neither).
func TestMachine(t *testing.T) {
	for name, c := range map[string]struct {
		kind             Kind
		failure, success int32
		before           bool
		outcomes, want   string
	}{
		"ready at once":                   {Readiness, 3, 1, false, "+", "+"},
		"not ready until it is":           {Readiness, 3, 1, false, "--+", "??+"},
		"unready after three":             {Readiness, 3, 1, false, "+---+", "+++-+"},
		"a success in between counts":     {Readiness, 3, 1, false, "+--+--", "++++++"},
		"two successes wanted":            {Readiness, 1, 2, false, "+++-++", "?++--+"},
		"known from before":               {Readiness, 2, 1, true, "--", "+-"},
		"alive from the start":            {Liveness, 3, 1, false, "--", "++"},
		"dead after three":                {Liveness, 3, 1, false, "---", "++-"},
		"startup":                         {Startup, 3, 1, false, "--+", "??+"},
		"startup failed":                  {Startup, 2, 1, false, "--", "?-"},
		"thresholds of zero count as one": {Readiness, 0, 0, false, "+-+", "+-+"},
	} {
		m := newMachine(c.kind, &corev1.Probe{FailureThreshold: c.failure, SuccessThreshold: c.success}, c.before)
		var got strings.Builder
		for _, o := range c.outcomes {
			before := [2]bool{m.passed, m.failed}
			changed := m.observe(o == '+')
			if changed != (before != [2]bool{m.passed, m.failed}) {
				t.Errorf("%s: changed is %v", name, changed)
			}
			switch {
			case m.passed:
				got.WriteByte('+')
			case m.failed:
				got.WriteByte('-')
			default:
				got.WriteByte('?')
			}
		}
		if got.String() != c.want {
			t.Errorf("%s: %s became %s, want %s", name, c.outcomes, got.String(), c.want)
		}
	}
}

// fakeExec runs commands by calling a function with them.
type fakeExec func(command []string) (string, int32, error)

func (f fakeExec) ExecSync(_ context.Context, _ string, command []string, _ time.Duration) ([]byte, []byte, int32, error) {
	out, code, err := f(command)
	return []byte(out), nil, code, err
}

func TestHandlers(t *testing.T) {
	var gotHeader http.Header
	var gotHost string
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		gotHeader, gotHost = r.Header.Clone(), r.Host
		_, _ = w.Write([]byte("fine"))
	})
	mux.HandleFunc("/bad", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/bad", http.StatusFound) })
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	defer plain.Close()
	defer secure.Close()
	portOf := func(s *httptest.Server) int {
		u, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		p, err := strconv.Atoi(u.Port())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	healthy := health.NewServer()
	healthy.SetServingStatus("sick", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, healthy)
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	grpcPort := int32(l.Addr().(*net.TCPAddr).Port)
	const closedPort = 1 // a port that was free a moment ago may belong to another test by now

	get := func(path string, s *httptest.Server, scheme corev1.URIScheme, headers ...corev1.HTTPHeader) *corev1.ProbeHandler {
		return &corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(int32(portOf(s))), Scheme: scheme, HTTPHeaders: headers}}
	}
	command := func(words ...string) *corev1.ProbeHandler {
		return &corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: words}}
	}
	sick := "sick"
	exec := fakeExec(func(command []string) (string, int32, error) {
		switch command[0] {
		case "fail":
			return "because", 1, nil
		case "hang":
			return "", 0, grpcstatus.Error(grpccodes.DeadlineExceeded, "deadline")
		case "broken":
			return "", 0, grpcstatus.Error(grpccodes.Unknown, `failed to exec in container: exec: "broken": executable file not found in $PATH`)
		case "escape":
			return "\x1b[2J" + strings.Repeat("€", maxOutput), 1, nil
		}
		return "fine", 0, nil
	})
	target := Target{Container: &corev1.Container{Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(portOf(plain))}}}, PodIP: "127.0.0.1"}
	for name, c := range map[string]struct {
		handler *corev1.ProbeHandler
		ok      bool
		message string
		err     string
	}{
		"http":                  {get("/ok", plain, ""), true, "fine", ""},
		"https":                 {get("/ok", secure, corev1.URISchemeHTTPS), true, "fine", ""},
		"http error":            {get("/bad", plain, ""), false, "HTTP probe failed with statuscode: 500", ""},
		"http redirect":         {get("/here", plain, ""), false, "statuscode: 500", ""},
		"http redirect away":    {get("/away", plain, ""), true, "Probe terminated redirects, Response body: ", ""},
		"http timeout":          {get("/slow", plain, ""), false, "deadline exceeded", ""},
		"http, not listening":   {&corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromInt32(closedPort)}}, false, "connection refused", ""},
		"http, by port name":    {&corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("web")}}, true, "", ""},
		"http, no such name":    {&corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("none")}}, false, "", "port none not found"},
		"tcp":                   {&corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("web")}}, true, "", ""},
		"tcp, not listening":    {&corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(closedPort)}}, false, "connection refused", ""},
		"grpc":                  {&corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: grpcPort}}, true, "service healthy", ""},
		"grpc, not serving":     {&corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: grpcPort, Service: &sick}}, false, "service unhealthy", ""},
		"grpc, not listening":   {&corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: closedPort}}, false, "failed to connect", ""},
		"exec":                  {command("ok"), true, "fine", ""},
		"exec failed":           {command("fail"), false, "because", ""},
		"exec timed out":        {command("hang"), false, "command timed out", ""},
		"exec could not be run": {command("broken"), false, "", "the command's program was not found in the container"},
		"exec with controls":    {command("escape"), false, `\x1b[2J€`, ""},
		"nothing":               {&corev1.ProbeHandler{}, false, "", "no handler"},
	} {
		timeout := time.Minute
		if name == "http time-out" {
			timeout = time.Second
		}
		out, err := Run(context.Background(), exec, target, c.handler, timeout)
		if out.OK != c.ok || !strings.Contains(out.Message, c.message) || out.Warning != (name == "http redirect away") || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %+v %v", name, out, err)
		}
	}
	if _, err := Run(context.Background(), exec, target, get("/ok", plain, "", corev1.HTTPHeader{Name: "Host", Value: "example.com"}, corev1.HTTPHeader{Name: "X-A", Value: "1"}, corev1.HTTPHeader{Name: "X-A", Value: "2"}), time.Minute); err != nil {
		t.Fatal(err)
	}
	if gotHost != "example.com" || len(gotHeader["X-A"]) != 2 || !strings.HasPrefix(gotHeader.Get("User-Agent"), "kube-probe/") {
		t.Errorf("headers: %s %v", gotHost, gotHeader)
	}
}

// TestProber checks that verdicts follow the probes, across instances.
func TestProber(t *testing.T) {
	var mu sync.Mutex
	answers := map[string]int32{"startup": 1, "ready": 1, "live": 0}
	set := func(name string, code int32) {
		mu.Lock()
		defer mu.Unlock()
		answers[name] = code
	}
	exec := fakeExec(func(command []string) (string, int32, error) {
		mu.Lock()
		defer mu.Unlock()
		return "", answers[command[0]], nil
	})
	changed := make(chan types.UID, 100)
	pr := New(exec, nil, func(uid types.UID) { changed <- uid })
	defer pr.Close()
	probe := func(name string) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{name}}}, PeriodSeconds: 1, FailureThreshold: 1, SuccessThreshold: 1, TimeoutSeconds: 1}
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "a", StartupProbe: probe("startup"), ReadinessProbe: probe("ready"), LivenessProbe: probe("live"),
	}, {Name: "b"}}}}
	p.Spec.Containers[0].StartupProbe.FailureThreshold = 100
	state := &cri.Pod{UID: "u", Containers: []cri.Container{
		{ID: "a-0", Name: "a", State: cri.StateRunning, StartedAt: time.Now()}, {ID: "b-0", Name: "b", State: cri.StateRunning, StartedAt: time.Now()},
	}}
	pr.Sync(context.Background(), p, state, "127.0.0.1", false)
	v := pr.Verdicts("u")
	if v.Started("a-0") || v.Ready("a-0") || !v.Started("b-0") || !v.Ready("b-0") || v.Started("unknown") {
		t.Errorf("at first: %+v", v)
	}
	await := func(what string, ok func(Verdicts) bool) {
		t.Helper()
		deadline := time.After(time.Minute)
		for !ok(pr.Verdicts("u")) {
			select {
			case <-changed:
			case <-time.After(50 * time.Millisecond):
			case <-deadline:
				t.Fatal("timed out waiting until " + what)
			}
		}
	}
	set("ready", 0)
	set("live", 1) // liveness is not probed before the container has started
	set("startup", 0)
	await("started", func(v Verdicts) bool { return v.Started("a-0") })
	await("ready", func(v Verdicts) bool { return v.Ready("a-0") })
	await("unhealthy", func(v Verdicts) bool { return v.Unhealthy("a-0") == "failed liveness probe" })
	// The next instance starts without a verdict.
	state.Containers[0].ID = "a-1"
	set("live", 0)
	pr.Sync(context.Background(), p, state, "127.0.0.1", false)
	if v := pr.Verdicts("u"); v.Unhealthy("a-1") != "" || v.Ready("a-0") {
		t.Errorf("next instance: %+v", v)
	}
	await("ready again", func(v Verdicts) bool { return v.Ready("a-1") })
	// While the pod ends, only readiness is probed.
	pr.Sync(context.Background(), p, state, "127.0.0.1", true)
	set("live", 1)
	set("ready", 1)
	await("not ready while the pod ends", func(v Verdicts) bool { return !v.Ready("a-1") })
	if v := pr.Verdicts("u"); v.Unhealthy("a-1") != "" {
		t.Error("liveness was probed while the pod ends")
	}
	pr.Forget("u")
	if v := pr.Verdicts("u"); v.Started("b-0") {
		t.Error("a forgotten pod still has verdicts")
	}
}

// TestProberBefore checks that the reported state of an instance is carried over by the
// next agent.
func TestProberBefore(t *testing.T) {
	pr := New(fakeExec(func([]string) (string, int32, error) { return "", 0, errors.New("not yet") }), nil, func(types.UID) {})
	defer pr.Close()
	probe := &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}, PeriodSeconds: 1}
	yes := true
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "a", StartupProbe: probe, ReadinessProbe: probe}}}}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "a", ContainerID: "containerd://a-0", Started: &yes, Ready: true}}
	state := &cri.Pod{UID: "u", Containers: []cri.Container{{ID: "a-0", Name: "a", State: cri.StateRunning}}}
	pr.Sync(context.Background(), p, state, "", false)
	if v := pr.Verdicts("u"); !v.Started("a-0") || !v.Ready("a-0") {
		t.Errorf("%+v", v)
	}
}

package probe

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/event"
)

// TestHook checks that any response to a hook's request is a success, including a plain
// HTTP response to an HTTPS request, and that a request without a response fails with an
// error that does not contain the URL.
func TestHook(t *testing.T) {
	type seen struct{ scheme, agent, authorization string }
	var mu sync.Mutex
	var requests []seen
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		s := seen{"http", r.UserAgent(), r.Header.Get("Authorization")}
		if r.TLS != nil {
			s.scheme = "https"
		}
		requests = append(requests, s)
		code, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		w.Header().Set("Location", "http://elsewhere.invalid/")
		w.WriteHeader(code)
	})
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	defer plain.Close()
	defer secure.Close()
	get := func(s *httptest.Server, scheme corev1.URIScheme, path string) *corev1.HTTPGetAction {
		u, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		return &corev1.HTTPGetAction{Path: path, Port: intstr.Parse(u.Port()), Scheme: scheme, HTTPHeaders: []corev1.HTTPHeader{{Name: "Authorization", Value: "Bearer x"}}}
	}
	target := Target{Container: &corev1.Container{}, PodIP: "127.0.0.1"}
	for _, c := range []struct {
		name     string
		get      *corev1.HTTPGetAction
		fallback bool
		want     seen
	}{
		{"200", get(plain, "", "/200"), false, seen{"http", hookAgent, "Bearer x"}},
		{"404", get(plain, "", "/404"), false, seen{"http", hookAgent, "Bearer x"}},
		{"503", get(plain, "", "/503"), false, seen{"http", hookAgent, "Bearer x"}},
		{"redirect to another host", get(plain, "", "/302"), false, seen{"http", hookAgent, "Bearer x"}},
		{"HTTPS", get(secure, corev1.URISchemeHTTPS, "/401"), false, seen{"https", hookAgent, "Bearer x"}},
		{"HTTPS to a plain HTTP server", get(plain, corev1.URISchemeHTTPS, "/404"), true, seen{"http", hookAgent, ""}},
	} {
		requests = nil
		fallback, err := Hook(context.Background(), target, c.get, time.Minute)
		if err != nil || (fallback != "") != c.fallback {
			t.Errorf("%s: fallback %q, %v", c.name, fallback, err)
		}
		if len(requests) != 1 || requests[0] != c.want {
			t.Errorf("%s: the server saw %+v", c.name, requests)
		}
	}
	refused := &corev1.HTTPGetAction{Path: "/?token=canary", Port: intstr.FromInt32(1)}
	if _, err := Hook(context.Background(), target, refused, time.Minute); err == nil || !strings.Contains(err.Error(), "connection refused") || strings.Contains(err.Error(), "canary") {
		t.Errorf("nothing listening: %v", err)
	}
	if _, err := Hook(context.Background(), Target{Container: &corev1.Container{}}, refused, time.Minute); err == nil {
		t.Error("a request was sent to a pod without an address")
	}
}

// sink collects the events that are written.
type sink chan *corev1.Event

func (s sink) CreateEvent(_ context.Context, e *corev1.Event) (*corev1.Event, error) {
	s <- e
	return e, nil
}

func (s sink) PatchEvent(_ context.Context, _, _ string, _ []byte) (*corev1.Event, error) {
	return nil, nil
}

// TestProbeWarning checks that a probe that is redirected to another host succeeds and
// records an event.
func TestProbeWarning(t *testing.T) {
	server := httptest.NewServer(http.RedirectHandler("http://elsewhere.invalid/", http.StatusFound))
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	written := make(sink, 10)
	events := event.NewRecorder(written, "kubelet", "node")
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- events.Run(ctx) }()
	defer func() { cancel(); <-done }()
	ready := make(chan types.UID, 10)
	pr := New(nil, events, func(uid types.UID) { ready <- uid })
	defer pr.Close()
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "n", UID: "u"}, Spec: corev1.PodSpec{Containers: []corev1.Container{{
		Name: "a", ReadinessProbe: &corev1.Probe{TimeoutSeconds: 30, PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.Parse(u.Port()), Path: "/"}}},
	}}}}
	state := &cri.Pod{UID: "u", Containers: []cri.Container{{ID: "a-0", Name: "a", State: cri.StateRunning, StartedAt: time.Now()}}}
	pr.Sync(context.Background(), p, state, "127.0.0.1", false)
	select {
	case <-ready:
	case <-time.After(time.Minute):
		t.Fatal("the probe reached no verdict")
	}
	if !pr.Verdicts("u").Ready("a-0") {
		t.Error("the container is not ready")
	}
	select {
	case e := <-written:
		if e.Reason != event.ProbeWarning || e.Type != corev1.EventTypeWarning || !strings.Contains(e.Message, "Readiness probe warning: Probe terminated redirects, Response body: ") {
			t.Errorf("event %s %s: %q", e.Type, e.Reason, e.Message)
		}
	case <-time.After(time.Minute):
		t.Error("no event was recorded")
	}
}

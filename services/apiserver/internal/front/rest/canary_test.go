package rest

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
)

// heard is a log that several goroutines write to.
type heard struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *heard) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *heard) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// recorded runs a test with every span recorded.
func recorded(t *testing.T) *tracetest.InMemoryExporter {
	t.Helper()
	exporter := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))
	before, name := tracer, "keelson.dev/apiserver/rest"
	tracer = provider.Tracer(name)
	t.Cleanup(func() { tracer = before; _ = provider.Shutdown(context.Background()) })
	return exporter
}

// TestNoArgumentsNorTokensInTelemetry sends requests with secrets in their query and headers, and
// searches for them in all telemetry of the front.
func TestNoArgumentsNorTokensInTelemetry(t *testing.T) {
	const canary = "canary-7f3a"
	log, registry, exporter := &heard{}, prometheus.NewRegistry(), recorded(t)
	logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h := New(Config{API: newFake(withStreams(smallTable())...), Authn: fakeAuthn{}, Log: logger, Registerer: registry})
	token := base64.RawURLEncoding.EncodeToString([]byte(canary))
	exec := "/api/v1/namespaces/ns/pods/p/exec?stdout=1&command=" + canary + "&command=sh"
	for _, r := range []struct {
		method, target string
		header         map[string]string
	}{
		{"POST", exec, nil},
		{"POST", exec, map[string]string{"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}},
		{"GET", exec, map[string]string{
			"Connection": "Upgrade", "Upgrade": "websocket", "Sec-Websocket-Version": "13", "Sec-Websocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
			"Sec-Websocket-Protocol": "base64url.bearer.authorization.k8s.io." + token + ", v5.channel.k8s.io",
		}},
		{"POST", "/api/v1/namespaces/ns/pods/p/attach?container=" + canary, nil},
		{"GET", "/api/v1/namespaces/ns/pods?access_token=" + canary, nil},
		{"GET", "/nowhere?token=" + canary, map[string]string{"Authorization": "Basic " + canary}},
	} {
		if r.header == nil {
			r.header = map[string]string{}
		}
		r.header["Traceparent"] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		do(t, h, r.method, r.target, "", r.header)
	}
	if !strings.Contains(log.String(), "msg=request") || len(exporter.GetSpans()) == 0 {
		t.Fatalf("nothing was logged or recorded:\n%s", log)
	}
	metrics, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"logs": log.String(), "metrics": fmt.Sprint(metrics), "spans": fmt.Sprintf("%+v", exporter.GetSpans()),
	} {
		for _, secret := range []string{canary, token} {
			if i := strings.Index(text, secret); i >= 0 {
				t.Errorf("%s contain the secret: …%s…", what, text[max(0, i-200):min(len(text), i+40)])
			}
		}
	}
}

// TestTracesAreForAuthenticatedClients sends a traceparent with and without credentials.
func TestTracesAreForAuthenticatedClients(t *testing.T) {
	exporter := recorded(t)
	h := New(Config{API: newFake(smallTable()...), Authn: fakeAuthn{}})
	header := map[string]string{"Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	for auth, want := range map[string]int{"Bearer admin": 1, "Bearer bad": 0, "": 0} {
		exporter.Reset()
		header["Authorization"] = auth
		do(t, h, "GET", "/api/v1/namespaces/ns/pods", "", header)
		do(t, h, "POST", "/nowhere", "", map[string]string{"Authorization": auth})
		if n := len(exporter.GetSpans()); n != want {
			t.Errorf("%q: %d spans, want %d", auth, n, want)
		}
	}
}

// TestCompressedBodiesAreRefused checks that the front never decompresses a body.
func TestCompressedBodiesAreRefused(t *testing.T) {
	h := New(Config{API: newFake(smallTable()...), Authn: fakeAuthn{}})
	pod := `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p"}}`
	for encoding, want := range map[string]int{"gzip": http.StatusUnsupportedMediaType, "br": http.StatusUnsupportedMediaType, "identity": http.StatusCreated} {
		resp, text := do(t, h, "POST", "/api/v1/namespaces/ns/pods", pod, map[string]string{"Content-Encoding": encoding})
		if resp.StatusCode != want {
			t.Errorf("%s: %d %s", encoding, resp.StatusCode, text)
		}
	}
}

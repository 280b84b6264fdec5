package rest

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/front/rest/negotiate"

	"keelson.dev/services/internal/inflight"
)

func boundsOf(requests, long, bodies int64) *bounds {
	return &bounds{requests: inflight.NewGauge(requests), long: inflight.NewGauge(long), bodies: inflight.NewGauge(bodies)}
}

func TestBounds(t *testing.T) {
	h := New(Config{API: newFake(smallTable()...), Authn: fakeAuthn{}})
	check := func(what, method, path, body string, code int) {
		t.Helper()
		resp, text := do(t, h, method, path, body, nil)
		if resp.StatusCode != code || code == http.StatusTooManyRequests && resp.Header.Get("Retry-After") != "1" {
			t.Errorf("%s: %d %v %s", what, resp.StatusCode, resp.Header, text)
		}
	}
	large := strings.Repeat(" ", preauthorize) + `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p"}}`
	for range 3 {
		h.bounds = boundsOf(1, 1, maxBody)
		check("within", "GET", "/api/v1/pods", "", 200) // and released
		check("within", "GET", "/api/v1/pods", "", 200)
		check("large within", "POST", "/api/v1/namespaces/ns/pods", large, 201)
		check("watch within", "GET", "/api/v1/pods?watch=1&timeoutSeconds=1", "", 200)
		h.bounds = boundsOf(0, 0, preauthorize)
		check("too many", "GET", "/api/v1/pods", "", 429)
		check("too many watches", "GET", "/api/v1/pods?watch=1", "", 429)
		check("health checks are not limited", "GET", "/livez", "", 200)
		h.bounds = boundsOf(1, 0, preauthorize)
		check("too large bodies", "POST", "/api/v1/namespaces/ns/pods", large, 429)
		check("small bodies", "POST", "/api/v1/namespaces/ns/pods", strings.TrimSpace(large), 201)
	}
}

// TestSlowBody checks that the request of a client which stops sending its body fails.
func TestSlowBody(t *testing.T) {
	server := httptest.NewUnstartedServer(New(Config{API: newFake(smallTable()...), Authn: fakeAuthn{}, BodyTimeout: 50 * time.Millisecond}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()
	for _, announced := range []int64{-1, 100} {
		reader, writer := io.Pipe()
		r, err := http.NewRequest(http.MethodPost, server.URL+"/api/v1/namespaces/ns/pods", reader)
		if err != nil {
			t.Fatal(err)
		}
		r.ContentLength = announced
		go func() { _, _ = writer.Write([]byte("{")) }()
		resp, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusGatewayTimeout {
			t.Errorf("announced %d: %d", announced, resp.StatusCode)
		}
		_ = writer.Close()
	}
}

func FuzzDeleteOptions(f *testing.F) {
	f.Add([]byte(`{"kind":"DeleteOptions","gracePeriodSeconds":1}`), byte(0))
	f.Add([]byte("gracePeriodSeconds: 1\n"), byte(1))
	f.Add([]byte("k8s\x00\x0a\x14\x0a\x02v1\x12\x0eDeleteOptions\x12\x02\x08\x05"), byte(2))
	f.Fuzz(func(t *testing.T, data []byte, encoding byte) {
		var o metav1.DeleteOptions
		if err := decodeDeleteOptions(data, negotiate.Encoding(encoding%3), &o); err == nil && o.Kind != "" && o.Kind != "DeleteOptions" {
			t.Errorf("accepted a %s", o.Kind)
		}
	})
}

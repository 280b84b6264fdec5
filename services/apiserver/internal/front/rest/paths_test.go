package rest

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apimachinery/pkg/version"
)

func TestPaths(t *testing.T) {
	registry := prometheus.NewRegistry()
	sick := errors.New("disk full")
	h := New(Config{
		API: newFake(smallTable()...), Authn: fakeAuthn{}, Registerer: registry,
		Metrics: promhttp.HandlerFor(registry, promhttp.HandlerOpts{}),
		Checks: []Check{
			{Name: "store", Run: func(context.Context) error { return sick }},
			{Name: "loop", Live: true, Run: func(context.Context) error { return nil }},
		},
	})
	for _, tc := range []struct {
		method, path string
		code         int
		text         string
	}{
		{"GET", "/livez", 200, "ok"},
		{"HEAD", "/livez", 200, ""},
		{"GET", "/livez/", 404, "404 page not found\n"},
		{"GET", "/livez?verbose", 200, "[+]ping ok\n[+]loop ok\nlivez check passed\n"},
		{"GET", "/livez/loop", 200, "ok"},
		{"GET", "/livez/loop?verbose", 200, "ok"},
		{"GET", "/livez/store", 404, ""},
		{"GET", "/readyz", 500, "[+]ping ok\n[-]store failed: reason withheld\n[+]loop ok\nreadyz check failed\n"},
		{"GET", "/healthz", 500, "store failed"},
		{"GET", "/readyz?exclude=store", 200, "ok"},
		{"GET", "/readyz?exclude=store&exclude=none&verbose=1", 200, "[+]store excluded: ok\n[+]loop ok\nwarn: some health checks cannot be excluded: no matches for \"none\"\nreadyz check passed\n"},
		{"GET", "/readyz/store", 500, "[-]store failed: reason withheld\n"},
		{"POST", "/readyz?exclude=store", 200, "ok"},
		{"GET", "/openapi/v2/", 404, "404 page not found\n"},
		{"GET", "/index.html", 200, `"/version"`},
		{"GET", "/debug/pprof", 302, ""},
		{"GET", "/debug/pprof/", 200, "profile"},
		{"POST", "/version", 405, ""},
		{"HEAD", "/version", 405, ""},
		{"GET", "/debug/pprof/goroutine?debug=1", 200, "goroutine profile"},
		{"GET", "/openapi/v2", 200, `"swagger":"2.0"`},
		{"GET", "/openid/v1/jwks", 404, ""},
		{"GET", "/metrics", 200, `apiserver_request_total{code="200",group="",resource="",subresource="",verb="path",version=""}`},
	} {
		resp, body := do(t, h, tc.method, tc.path, "", nil)
		if tc.code == 200 && strings.HasPrefix(tc.path, "/livez/") && (string(body) != "ok" || resp.Header.Get("X-Content-Type-Options") != "") {
			t.Errorf("%s: %v %s", tc.path, resp.Header, body)
		}
		if resp.StatusCode != tc.code || !strings.Contains(string(body), tc.text) {
			t.Errorf("%s %s: %d %s", tc.method, tc.path, resp.StatusCode, body)
		}
	}
	_, body := do(t, h, http.MethodGet, "/version", "", nil)
	var v version.Info
	if err := json.Unmarshal(body, &v); err != nil || v.Major != "1" || v.Minor != "37" || !strings.HasPrefix(v.GitVersion, "v1.37.2-keelson") {
		t.Errorf("version %s", body)
	}
	do(t, h, http.MethodGet, "/api/v1/namespaces/ns/nopes/"+strings.Repeat("x", 50), "", nil)
	if _, body := do(t, h, http.MethodGet, "/metrics", "", nil); strings.Contains(string(body), "nopes") {
		t.Error("an unknown resource created a series")
	}
}

package rest

import (
	"bytes"
	"encoding/json"
	"flag"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// golden compares got with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (run with -rewrite)", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs from the response (run with -rewrite and check the difference):\n%s", path, got)
	}
}

// do sends a request to the handler directly.
func do(t *testing.T, h http.Handler, method, target, body string, header map[string]string) (*http.Response, []byte) {
	t.Helper()
	var reader io.Reader
	if body != "" {
		reader = bytes.NewBufferString(body)
	}
	r := httptest.NewRequest(method, target, reader)
	r.Header.Set("Authorization", "Bearer admin")
	for k, v := range header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	resp := w.Result()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, data
}

func indent(t *testing.T, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Indent(&out, bytes.TrimSpace(data), "", "  "); err != nil {
		t.Fatalf("%v: %s", err, data)
	}
	out.WriteByte('\n')
	return out.Bytes()
}

func TestDiscoveryGolden(t *testing.T) {
	h := New(Config{API: newFake(smallTable()...), Authn: fakeAuthn{}, ServerAddresses: []string{"10.89.1.1:6443"}})
	const aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	for name, tc := range map[string]struct{ path, accept string }{
		"api.json":            {"/api", ""},
		"apis.json":           {"/apis", ""},
		"api_v1.json":         {"/api/v1", ""},
		"apis_apps.json":      {"/apis/apps", ""},
		"apis_apps_v1.json":   {"/apis/apps/v1", ""},
		"api_aggregated.json": {"/api", aggregated},
		"apis_v2.json":        {"/apis", aggregated},
		"apis_v2beta1.json":   {"/apis", "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"},
		"root.json":           {"/", ""},
	} {
		resp, body := do(t, h, http.MethodGet, tc.path, "", map[string]string{"Accept": tc.accept})
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
			continue
		}
		golden(t, name, indent(t, body))
	}
	resp, _ := do(t, h, http.MethodGet, "/apis", "", map[string]string{"Accept": aggregated})
	again, body := do(t, h, http.MethodGet, "/apis", "", map[string]string{"Accept": aggregated, "If-None-Match": resp.Header.Get("ETag")})
	if again.StatusCode != http.StatusNotModified || len(body) > 0 {
		t.Errorf("request with If-None-Match: %d, %d bytes", again.StatusCode, len(body))
	}
	if got := resp.Header.Get("Content-Type"); got != aggregated {
		t.Errorf("content type %q", got)
	}
}

func TestTableGolden(t *testing.T) {
	f := newFake(smallTable()...)
	for i := range 2 {
		pod := samplePod(i)
		pod.CreationTimestamp = metav1.Unix(1700000000, 0)
		f.put(f.table.ByKind(corev1.SchemeGroupVersion.WithKind("Pod")), pod)
	}
	f.put(f.table.ByKind(corev1.SchemeGroupVersion.WithKind("ConfigMap")), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "cm", CreationTimestamp: metav1.Unix(1700000000, 0)},
	})
	h := New(Config{API: f, Authn: fakeAuthn{}})
	const table = "application/json;as=Table;v=v1;g=meta.k8s.io"
	for name, tc := range map[string]struct{ path, accept string }{
		"table_list.json":          {"/api/v1/namespaces/default/pods", table},
		"table_one.json":           {"/api/v1/namespaces/default/pods/pod-1?includeObject=Object", table},
		"table_none.json":          {"/api/v1/pods?includeObject=None", table},
		"table_default.json":       {"/api/v1/namespaces/default/configmaps", table},
		"table_beta.json":          {"/api/v1/configmaps", "application/json;as=Table;v=v1beta1;g=meta.k8s.io"},
		"metadata_list.json":       {"/api/v1/pods", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"},
		"metadata_one.json":        {"/api/v1/namespaces/default/pods/pod-0", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"},
		"list.json":                {"/api/v1/namespaces/default/configmaps", ""},
		"object.json":              {"/api/v1/namespaces/default/configmaps/cm", ""},
		"object_pretty.json":       {"/api/v1/namespaces/default/configmaps/cm?pretty=true", ""},
		"table_watch.json":         {"/api/v1/pods?watch=1&timeoutSeconds=1", table},
		"watch_initial_state.json": {"/api/v1/configmaps?watch=1&timeoutSeconds=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan", ""},
	} {
		resp, body := do(t, h, http.MethodGet, tc.path, "", map[string]string{"Accept": tc.accept})
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %v %s", name, resp.StatusCode, resp.Header, body)
			continue
		}
		var out bytes.Buffer
		if name == "object_pretty.json" {
			golden(t, name, body)
			continue
		}
		for d := json.NewDecoder(bytes.NewReader(body)); d.More(); { // a watch sends several
			var one json.RawMessage
			if err := d.Decode(&one); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			out.Write(indent(t, one))
		}
		golden(t, name, out.Bytes())
	}
	resp, body := do(t, h, http.MethodGet, "/api/v1/namespaces/default/configmaps/cm", "", map[string]string{"Accept": "application/yaml"})
	if resp.Header.Get("Content-Type") != "application/yaml" {
		t.Errorf("%v", resp.Header)
	}
	golden(t, "object.yaml", body)
}

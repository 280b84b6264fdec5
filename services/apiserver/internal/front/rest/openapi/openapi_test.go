package openapi_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"keelson.dev/services/apiserver/internal/front/rest/openapi"
	"keelson.dev/services/apiserver/internal/kind"
	"keelson.dev/services/apiserver/internal/resource"
)

// TestUpToDate fails if the table has changed since `make gen`.
func TestUpToDate(t *testing.T) {
	want, err := os.ReadFile("documents/table.json")
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(openapi.Resources(resource.NewTable(kind.All()...)), "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(got, '\n'), want) {
		t.Error("the table of kinds has changed: run `make gen` for its OpenAPI documents")
	}
}

func get(t *testing.T, h http.HandlerFunc, path string, header map[string]string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for k, v := range header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	h(w, r)
	return w.Result()
}

func TestServe(t *testing.T) {
	d := openapi.New()
	const proto2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	plain := get(t, d.ServeV2, "/openapi/v2", nil)
	var doc struct {
		Swagger     string
		Paths       map[string]map[string]json.RawMessage
		Definitions map[string]json.RawMessage
	}
	if err := json.NewDecoder(plain.Body).Decode(&doc); err != nil || doc.Swagger != "2.0" {
		t.Fatalf("%v, %+v", err, doc.Swagger)
	}
	for _, path := range []string{"/api/v1/namespaces/{namespace}/pods/{name}", "/apis/apps/v1/namespaces/{namespace}/deployments/{name}"} {
		if doc.Paths[path]["patch"] == nil {
			t.Errorf("%s has no patch", path)
		}
	}
	if doc.Definitions["io.k8s.api.core.v1.Pod"] == nil {
		t.Error("no definition of Pod")
	}
	zipped := get(t, d.ServeV2, "/openapi/v2", map[string]string{"Accept-Encoding": "gzip", "Accept": proto2 + ", application/json"})
	if zipped.Header.Get("Content-Encoding") != "gzip" || zipped.Header.Get("Content-Type") != proto2 {
		t.Errorf("headers %v", zipped.Header)
	}
	same := get(t, d.ServeV2, "/openapi/v2", map[string]string{"If-None-Match": plain.Header.Get("ETag")})
	if same.StatusCode != http.StatusNotModified {
		t.Errorf("request with If-None-Match: %d", same.StatusCode)
	}
	if none := get(t, d.ServeV2, "/openapi/v2", map[string]string{"Accept": "text/html"}); none.StatusCode != http.StatusNotAcceptable {
		t.Errorf("request for HTML: %d", none.StatusCode)
	}

	var index struct {
		Paths map[string]struct{ ServerRelativeURL string }
	}
	if err := json.NewDecoder(get(t, d.ServeV3Index, "/openapi/v3", nil).Body).Decode(&index); err != nil {
		t.Fatal(err)
	}
	url := index.Paths["apis/apps/v1"].ServerRelativeURL
	v3 := get(t, d.ServeV3, url, nil)
	var three struct{ OpenAPI string }
	if err := json.NewDecoder(v3.Body).Decode(&three); err != nil || three.OpenAPI != "3.0.0" {
		t.Errorf("%s: %v, %+v", url, err, three)
	}
	if v3.Header.Get("Cache-Control") != "public, immutable" {
		t.Errorf("headers %v", v3.Header)
	}
	moved := get(t, d.ServeV3, "/openapi/v3/apis/apps/v1?hash=old", nil)
	if moved.StatusCode != http.StatusMovedPermanently || moved.Header.Get("Location") != url {
		t.Errorf("another hash: %d, %v", moved.StatusCode, moved.Header)
	}
	if none := get(t, d.ServeV3, "/openapi/v3/apis/none/v1", nil); none.StatusCode != http.StatusNotFound {
		t.Errorf("unknown group: %d", none.StatusCode)
	}
	raw, err := io.ReadAll(get(t, d.ServeV3, "/openapi/v3/api/v1", map[string]string{"Accept": "application/com.github.proto-openapi.spec.v3@v1.0+protobuf"}).Body)
	if err != nil || len(raw) == 0 || raw[0] == '{' {
		t.Errorf("protobuf: %d bytes, %v", len(raw), err)
	}
}

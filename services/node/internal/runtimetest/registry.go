package runtimetest

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Registry is an image registry with TLS and a password. It serves one image, the test
// image, under any name.
type Registry struct {
	// Host is the registry's host:port.
	Host string
	// User and Password are the required credentials.
	User, Password string

	mu        sync.Mutex
	manifests int
}

// Manifests returns how often a manifest was requested with valid credentials.
func (r *Registry) Manifests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.manifests
}

// StartRegistry runs a registry until the test ends and makes the runtime trust it. Images
// of the registries in mirrors are pulled from it too.
func (rt *Runtime) StartRegistry(t testing.TB, mirrors ...string) *Registry {
	t.Helper()
	reg := &Registry{User: "alice", Password: "s3cret"}
	blobs := map[string][]byte{}
	put := func(b []byte) string {
		d := "sha256:" + digest(b)
		blobs[d] = b
		return d
	}
	layer, diff := imageLayer(t, nil)
	var zipped bytes.Buffer
	gz := gzip.NewWriter(&zipped)
	if _, err := gz.Write(layer); err != nil {
		t.Fatal(err)
	}
	if err := gz.Close(); err != nil {
		t.Fatal(err)
	}
	config := imageConfig(t, diff, nil, []string{"/bin/sleep", "2147483647"}, "")
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": put(config), "size": len(config)},
		"layers": []map[string]any{{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": put(zipped.Bytes()), "size": zipped.Len()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifestDigest := put(manifest)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != reg.User || password != reg.Password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		}
		if strings.Contains(r.URL.Path, "/manifests/") {
			reg.mu.Lock()
			reg.manifests++
			reg.mu.Unlock()
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			w.Header().Set("Docker-Content-Digest", manifestDigest)
			http.ServeContent(w, r, "", zeroTime, bytes.NewReader(manifest))
			return
		}
		if i := strings.LastIndex(r.URL.Path, "/blobs/"); i >= 0 {
			if b, ok := blobs[r.URL.Path[i+len("/blobs/"):]]; ok {
				w.Header().Set("Content-Type", "application/octet-stream")
				http.ServeContent(w, r, "", zeroTime, bytes.NewReader(b))
				return
			}
		}
		if r.URL.Path == "/v2/" {
			return
		}
		http.NotFound(w, r)
	}))
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	server.StartTLS()
	t.Cleanup(server.Close)
	reg.Host = strings.TrimPrefix(server.URL, "https://")
	ca := filepath.Join(rt.Dir, "registry-"+digest([]byte(reg.Host))[:8]+".crt")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range append(mirrors, reg.Host) {
		dir := filepath.Join(rt.Dir, "certs.d", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		hosts := fmt.Sprintf("server = \"https://%s\"\n[host.\"https://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = %q\n", name, reg.Host, ca)
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(hosts), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return reg
}

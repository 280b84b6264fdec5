package runtimetest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// applets are the busybox applets that the test image provides by name.
var applets = []string{
	"sh", "sleep", "cat", "echo", "ls", "env", "id", "true", "false", "test", "httpd", "nc", "touch", "rm", "mkdir", "mount", "hostname",
	"ps", "kill", "date", "head", "tail", "grep", "stat", "wget", "dd", "printenv", "chmod", "readlink", "seq", "trap", "tty", "stty", "yes", "wc",
}

// zeroTime makes archives and responses reproducible.
var zeroTime time.Time

// archive is a tar archive under construction.
type archive struct {
	t   testing.TB
	buf bytes.Buffer
	w   *tar.Writer
}

func newArchive(t testing.TB) *archive {
	a := &archive{t: t}
	a.w = tar.NewWriter(&a.buf)
	return a
}

func (a *archive) put(h *tar.Header, data []byte) {
	a.t.Helper()
	h.Size = int64(len(data))
	if err := a.w.WriteHeader(h); err != nil {
		a.t.Fatal(err)
	}
	if _, err := a.w.Write(data); err != nil {
		a.t.Fatal(err)
	}
}

func (a *archive) bytes() []byte {
	a.t.Helper()
	if err := a.w.Close(); err != nil {
		a.t.Fatal(err)
	}
	return a.buf.Bytes()
}

// imageLayer returns a root file system with busybox and the given files, and its digest.
func imageLayer(t testing.TB, files map[string]string) (layer []byte, diff string) {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("busybox: %v", err)
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	a := newArchive(t)
	for _, dir := range []string{"bin/", "etc/", "tmp/", "www/", "dev/", "proc/", "sys/", "var/"} {
		mode := int64(0o755)
		if dir == "tmp/" {
			mode = 0o1777
		}
		a.put(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: mode}, nil)
	}
	a.put(&tar.Header{Name: "bin/busybox", Mode: 0o755}, busybox)
	for _, name := range applets {
		a.put(&tar.Header{Name: "bin/" + name, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	a.put(&tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"))
	a.put(&tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nuser:x:1000:\n"))
	for name, text := range files {
		a.put(&tar.Header{Name: name, Mode: 0o644}, []byte(text))
	}
	layer = a.bytes()
	return layer, "sha256:" + digest(layer)
}

func imageConfig(t testing.TB, diff string, entrypoint, cmd []string, user string) []byte {
	t.Helper()
	config, err := json.Marshal(map[string]any{
		"architecture": goarch, "os": "linux",
		"config": map[string]any{"Env": []string{"PATH=/bin"}, "Entrypoint": entrypoint, "Cmd": cmd, "User": user},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{diff}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return config
}

// imageArchive returns a Docker archive with one image.
func imageArchive(t testing.TB, name string, entrypoint, cmd []string, user string) []byte {
	t.Helper()
	layer, diff := imageLayer(t, nil)
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	a := newArchive(t)
	a.put(&tar.Header{Name: "config.json", Mode: 0o644}, imageConfig(t, diff, entrypoint, cmd, user))
	a.put(&tar.Header{Name: "layer.tar", Mode: 0o644}, layer)
	a.put(&tar.Header{Name: "manifest.json", Mode: 0o644}, manifest)
	return a.bytes()
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// load imports an image archive into the runtime.
func (r *Runtime) load(t testing.TB, archive []byte) {
	t.Helper()
	file := filepath.Join(r.Dir, fmt.Sprintf("image-%s.tar", digest(archive)[:12]))
	if err := os.WriteFile(file, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ctr", "--address", r.socket(), "--namespace", "k8s.io", "images", "import", file).CombinedOutput()
	if err != nil {
		t.Fatalf("import image: %v: %s", err, strings.TrimSpace(string(out)))
	}
}

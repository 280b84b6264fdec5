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
)

// applets of busybox that the test image offers by name.
var applets = []string{
	"sh", "sleep", "cat", "echo", "ls", "env", "id", "true", "false", "test", "httpd", "nc", "touch", "rm", "mkdir", "mount", "hostname",
	"ps", "kill", "date", "head", "tail", "grep", "stat", "wget", "dd", "printenv", "chmod", "readlink", "seq", "trap", "tty", "stty", "yes", "wc",
}

// imageArchive is a docker archive with one image: busybox, and what is in
// files.
func imageArchive(t testing.TB, name string, entrypoint, cmd []string, user string, files map[string]string) []byte {
	t.Helper()
	path, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatalf("busybox: %v", err)
	}
	busybox, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	put := func(h *tar.Header, data []byte) {
		h.Size = int64(len(data))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "tmp/", "www/", "dev/", "proc/", "sys/", "var/"} {
		mode := int64(0o755)
		if dir == "tmp/" {
			mode = 0o1777
		}
		put(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: mode}, nil)
	}
	put(&tar.Header{Name: "bin/busybox", Mode: 0o755}, busybox)
	for _, a := range applets {
		put(&tar.Header{Name: "bin/" + a, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
	}
	put(&tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n"))
	put(&tar.Header{Name: "etc/group", Mode: 0o644}, []byte("root:x:0:\nuser:x:1000:\n"))
	for name, text := range files {
		put(&tar.Header{Name: name, Mode: 0o644}, []byte(text))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	diff := "sha256:" + digest(layer.Bytes())
	config, err := json.Marshal(map[string]any{
		"architecture": goarch, "os": "linux",
		"config": map[string]any{"Env": []string{"PATH=/bin"}, "Entrypoint": entrypoint, "Cmd": cmd, "User": user},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{diff}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	w = tar.NewWriter(&out)
	put(&tar.Header{Name: "config.json", Mode: 0o644}, config)
	put(&tar.Header{Name: "layer.tar", Mode: 0o644}, layer.Bytes())
	put(&tar.Header{Name: "manifest.json", Mode: 0o644}, manifest)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
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

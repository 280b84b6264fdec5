package command

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"keelson.dev/tools/internal/pki"
)

// kubeconfigFile writes a kubeconfig for the administrator of a new authority and returns its
// path.
func kubeconfigFile(t *testing.T, server string) string {
	t.Helper()
	dir := t.TempDir()
	a, err := pki.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Ensure(pki.Identity{Name: "admin", CommonName: "admin", Organization: []string{"system:masters"}}); err != nil {
		t.Fatal(err)
	}
	data, err := kubeconfigOf(filepath.Join(dir, "admin"), "elsewhere", server)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "kubeconfig")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTarget(t *testing.T) {
	t.Setenv("KUBECONFIG", "")
	path := kubeconfigFile(t, "https://control.example:6443")
	token := filepath.Join(t.TempDir(), "token")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, "client-certificate-data") {
			line = "    token: abc\n"
		}
		if !strings.Contains(line, "client-key-data") {
			lines = append(lines, line)
		}
	}
	if err := os.WriteFile(token, []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name      string
		r         remote
		endpoints []string
		token     string
		err       string
	}{
		{"server of the kubeconfig", remote{kubeconfig: path}, []string{"control.example:6443"}, "", ""},
		{"several servers", remote{kubeconfig: path, server: "a:1,b:2"}, []string{"a:1", "b:2"}, "", ""},
		{"token", remote{kubeconfig: token}, []string{"control.example:6443"}, "abc", ""},
		{"no kubeconfig", remote{server: "a:1"}, nil, "", "--server needs --kubeconfig"},
		{"missing file", remote{kubeconfig: path + ".none"}, nil, "", "no such file"},
		{"no port", remote{kubeconfig: path, server: "a"}, nil, "", "expected host:port"},
	} {
		got, err := row.r.target()
		if row.err != "" {
			if err == nil || !strings.Contains(err.Error(), row.err) {
				t.Errorf("%s: %v, want %q", row.name, err, row.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		if !slices.Equal(got.endpoints, row.endpoints) || got.token != row.token || got.tls.RootCAs == nil {
			t.Errorf("%s: %+v", row.name, got)
		}
		if want := min(1, len(got.cert)); len(got.tls.Certificates) != want {
			t.Errorf("%s: %d certificates, want %d", row.name, len(got.tls.Certificates), want)
		}
	}
}

// The files that identity writes for a program belong to the caller alone and are removed
// afterwards.
func TestIdentityFiles(t *testing.T) {
	got, err := (&remote{kubeconfig: kubeconfigFile(t, "https://control.example:6443")}).target()
	if err != nil {
		t.Fatal(err)
	}
	dir, remove, err := got.identity()
	if err != nil {
		t.Fatal(err)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "tls.key"): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v, want %v", path, st.Mode(), err, mode)
		}
	}
	remove()
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s still exists: %v", dir, err)
	}
	got.cert = nil
	if _, _, err := got.identity(); err == nil {
		t.Error("a kubeconfig with only a token yielded a certificate")
	}
}

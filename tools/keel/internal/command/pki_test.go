package command

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"keelson.dev/tools/internal/pki"
)

// files returns the contents of all regular files below a directory, by path.
func files(t *testing.T, dir string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		out[path[len(dir)+1:]] = data
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestPKI checks that every service gets its own files and no others, that only their owner can
// read keys, that a second call changes nothing, and that an interrupted call can be completed.
func TestPKI(t *testing.T) {
	dir := t.TempDir()
	call := func() {
		t.Helper()
		var out, errs bytes.Buffer
		if code := Run(context.Background(), []string{"pki", "--dir", dir, "--apiserver-host", "apiserver-0,apiserver-1", "--server", "https://127.0.0.1:7000", "--node", "node-0,node-1"}, &out, &errs); code != 0 {
			t.Fatalf("exit code %d: %s", code, errs.String())
		}
	}
	call()
	first := files(t, dir)
	for name := range first {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		public := filepath.Base(name) == "ca.crt" || filepath.Base(name) == "tls.crt"
		if mode := st.Mode().Perm(); mode != 0o600 && (!public || mode != 0o644) {
			t.Errorf("%s has mode %o", name, mode)
		}
	}
	for service, want := range map[string][]string{
		"apiserver":          {"ca.crt", "peer/ca.crt", "peer/tls.crt", "peer/tls.key", "sa.key", "tls.crt", "tls.key"},
		"controller-manager": {"ca.crt", "ca.key", "sa.key", "tls.crt", "tls.key"},
		"scheduler":          {"ca.crt", "tls.crt", "tls.key"},
		"cloud-controller":   {"ca.crt", "tls.crt", "tls.key"},
		"node-0":             {"bootstrap-token", "ca.crt"},
		"node-1":             {"bootstrap-token", "ca.crt"},
		"balancer":           {"ca.crt"},
		"admin":              {"tokens/node-0", "tokens/node-1", "ca.crt", "kubeconfig", "tls.crt", "tls.key"},
	} {
		have := files(t, filepath.Join(dir, service))
		for _, file := range want {
			if len(have[file]) == 0 {
				t.Errorf("%s: %s is missing", service, file)
			}
		}
		if len(have) != len(want) {
			t.Errorf("%s has %d files, want %v", service, len(have), want)
		}
	}
	for _, node := range []string{"node-0", "node-1"} {
		token := first[node+"/bootstrap-token"]
		if !regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`).Match(token) {
			t.Errorf("the token of %s does not have the form of a token (%d bytes)", node, len(token))
		}
		if !bytes.Equal(token, first["admin/tokens/"+node]) {
			t.Errorf("the administrator's token for %s differs from the node's", node)
		}
	}
	if bytes.Equal(first["node-0/bootstrap-token"], first["node-1/bootstrap-token"]) {
		t.Error("two nodes have the same token")
	}

	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(first["ca.crt"])
	pair, err := tls.X509KeyPair(first["apiserver/tls.crt"], first["apiserver/tls.key"])
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"apiserver-1", "localhost", "127.0.0.1", "10.96.0.1", "kubernetes.default.svc"} {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name}); err != nil {
			t.Errorf("apiserver as %s: %v", name, err)
		}
	}
	config, err := clientcmd.Load(first["admin/kubeconfig"])
	if err != nil {
		t.Fatal(err)
	}
	if server := config.Clusters[config.Contexts[config.CurrentContext].Cluster].Server; server != "https://127.0.0.1:7000" {
		t.Errorf("the kubeconfig's server is %s", server)
	}

	call()
	for name, data := range files(t, dir) {
		if !bytes.Equal(data, first[name]) {
			t.Errorf("the second call changed %s", name)
		}
	}
	for _, lost := range []string{"scheduler/tls.crt", "node-0/bootstrap-token", "apiserver/sa.key"} {
		if err := os.Remove(filepath.Join(dir, lost)); err != nil {
			t.Fatal(err)
		}
	}
	call()
	again := files(t, dir)
	for _, copied := range []string{"node-0/bootstrap-token", "apiserver/sa.key", "ca.key"} {
		if !bytes.Equal(again[copied], first[copied]) {
			t.Errorf("%s differs after it was lost and restored", copied)
		}
	}
	if _, err := tls.X509KeyPair(again["scheduler/tls.crt"], again["scheduler/tls.key"]); err != nil {
		t.Errorf("the scheduler's new certificate: %v", err)
	}
}

// TestPKIOfAnOlderVersion checks that peers get their own certificates, and that the apiservers
// accept the cluster's authority until a call an hour later.
func TestPKIOfAnOlderVersion(t *testing.T) {
	dir := t.TempDir()
	call := func() {
		t.Helper()
		var out, errs bytes.Buffer
		if code := Run(context.Background(), []string{"pki", "--dir", dir}, &out, &errs); code != 0 {
			t.Fatalf("exit code %d: %s", code, errs.String())
		}
	}
	call()
	for _, of := range []string{"peer-authority", filepath.Join("apiserver", "peer")} {
		if err := os.RemoveAll(filepath.Join(dir, of)); err != nil {
			t.Fatal(err)
		}
	}
	apiserver := filepath.Join(dir, "apiserver")
	for range 2 {
		call()
		if _, ok := pki.TransitionSince(apiserver); !ok {
			t.Fatal("apiservers that have not been upgraded yet would be rejected")
		}
	}
	old := time.Now().Add(-2 * transition)
	if err := os.Chtimes(filepath.Join(apiserver, "peer", "accept-cluster-authority"), old, old); err != nil {
		t.Fatal(err)
	}
	call()
	if _, ok := pki.TransitionSince(apiserver); ok {
		t.Error("the cluster's authority is still accepted after the transition")
	}
}

// A node must not have the name of a service, whose directory it would get.
func TestPKIRefusesNamesOfNodes(t *testing.T) {
	for _, name := range []string{"admin", "apiserver", "../x", "Node"} {
		var out, errs bytes.Buffer
		if code := Run(t.Context(), []string{"pki", "--dir", t.TempDir(), "--node", name}, &out, &errs); code != 2 {
			t.Errorf("--node %s: exit code %d: %s", name, code, errs.String())
		}
	}
}

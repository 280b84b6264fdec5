package pki

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
)

func TestEnsureKeepsWhatIsGood(t *testing.T) {
	dir := t.TempDir()
	a, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	id := Identity{Name: "server", CommonName: "server", Organization: []string{"group"}, Hosts: []string{"localhost", "127.0.0.1"}}
	read := func() string {
		data, err := os.ReadFile(filepath.Join(dir, "server", "tls.crt"))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	if err := a.Ensure(id); err != nil {
		t.Fatal(err)
	}
	first := read()
	again, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Ensure(id); err != nil {
		t.Fatal(err)
	}
	if read() != first {
		t.Error("a good certificate was replaced")
	}
	id.Hosts = append(id.Hosts, "10.0.0.1")
	if err := again.Ensure(id); err != nil {
		t.Fatal(err)
	}
	if read() == first {
		t.Error("a certificate that lacks a required host was kept")
	}

	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server", "tls.crt"), filepath.Join(dir, "server", "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(a.CA())
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, DNSName: "localhost"}); err != nil {
		t.Errorf("cannot verify the chain: %v", err)
	}
	if len(pair.Certificate) != 2 {
		t.Errorf("%d certificates in the chain, want leaf and authority", len(pair.Certificate))
	}
}

func TestKeysArePrivate(t *testing.T) {
	dir := t.TempDir()
	a, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Ensure(Identity{Name: "x", CommonName: "x"}); err != nil {
		t.Fatal(err)
	}
	if err := EnsureKey(filepath.Join(dir, "sa.key")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ca.key", "sa.key", "x/tls.key"} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", name, st.Mode().Perm())
		}
	}
}

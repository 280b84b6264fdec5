package pki

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func certificate(t *testing.T, path string) *x509.Certificate {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// The peer authority differs from the cluster's authority in key and name, and its certificates
// are valid for clients and servers.
func TestPeers(t *testing.T) {
	dir := t.TempDir()
	cluster, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	apiserver := filepath.Join(dir, "apiserver")
	if err := EnsurePeers(filepath.Join(dir, "peer-authority"), apiserver, false); err != nil {
		t.Fatal(err)
	}
	ca, leaf := certificate(t, filepath.Join(apiserver, "peer", "ca.crt")), certificate(t, filepath.Join(apiserver, "peer", "tls.crt"))
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Error(err)
		}
	}
	if leaf.CheckSignatureFrom(cluster.cert) == nil || ca.Subject.String() == cluster.cert.Subject.String() || leaf.Subject.CommonName != peerName {
		t.Errorf("unexpected certificate %s issued by %s", leaf.Subject, ca.Subject)
	}
	if _, ok := TransitionSince(apiserver); ok {
		t.Error("the peers of a new cluster accept the cluster's authority")
	}
	before := string(leaf.Raw)
	if err := EnsurePeers(filepath.Join(dir, "peer-authority"), apiserver, true); err != nil {
		t.Fatal(err)
	}
	if _, ok := TransitionSince(apiserver); ok || string(certificate(t, filepath.Join(apiserver, "peer", "tls.crt")).Raw) != before {
		t.Error("a second call changed something")
	}
	if _, err := os.Stat(filepath.Join(apiserver, "peer", "ca.key")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the apiservers have the authority's key: %v", err)
	}
}

func TestPeersOfAClusterThatHadNone(t *testing.T) {
	dir := t.TempDir()
	apiserver := filepath.Join(dir, "apiserver")
	for range 2 { // it stays until FinishPeers
		if err := EnsurePeers(filepath.Join(dir, "peer-authority"), apiserver, true); err != nil {
			t.Fatal(err)
		}
		if _, ok := TransitionSince(apiserver); !ok {
			t.Fatal("apiservers that are not upgraded yet would be refused")
		}
	}
	for range 2 {
		if err := FinishPeers(apiserver); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := TransitionSince(apiserver); ok {
		t.Error("the cluster's authority is still accepted")
	}
}

// Keys and directories of identities are private, even if another user opened their modes.
func TestModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	fill := func() {
		t.Helper()
		a, err := Open(dir)
		if err == nil {
			err = errors.Join(a.Ensure(Identity{Name: "admin", CommonName: "admin"}), a.Ensure(Identity{Name: "apiserver", CommonName: "apiserver"}), EnsureKey(filepath.Join(dir, "sa.key")),
				EnsurePeers(filepath.Join(dir, "peer-authority"), filepath.Join(dir, "apiserver"), true))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	keys := 0
	each := func(f func(path string, d fs.DirEntry, mode fs.FileMode)) {
		t.Helper()
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil {
				f(path, d, info.Mode().Perm())
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	check := func() {
		t.Helper()
		keys = 0
		each(func(path string, d fs.DirEntry, mode fs.FileMode) {
			want := fs.FileMode(0o644)
			switch {
			case d.IsDir():
				want = 0o700
			case strings.HasSuffix(path, ".key"):
				keys++
				want = 0o600
			}
			if mode&^want != 0 {
				t.Errorf("%s has mode %o, want %o", path, mode, want)
			}
		})
	}
	fill()
	check()
	each(func(path string, d fs.DirEntry, _ fs.FileMode) {
		if mode := fs.FileMode(0o755); path != dir {
			if !d.IsDir() {
				mode = 0o644
			}
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
	})
	fill()
	check()
	if keys != 6 {
		t.Errorf("%d keys, want 6: of two authorities, three identities and the service accounts", keys)
	}
}

// Package pki makes a cluster's certificates: an authority, and one for the peer
// ports of apiservers, short chains, one directory an identity. It never overwrites a key that is there and still good,
// and never prints one.
package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// Lifetimes of what is made here; leaves are renewed by `keel up` when less than
// a third of theirs is left.
const (
	authorityLifetime = 10 * 365 * 24 * time.Hour
	leafLifetime      = 365 * 24 * time.Hour
)

// Authority signs a cluster's certificates.
type Authority struct {
	dir  string
	cert *x509.Certificate
	pem  []byte
	key  crypto.Signer
}

// Identity says whom a certificate is for.
type Identity struct {
	// Name is the directory's.
	Name         string
	CommonName   string
	Organization []string
	// Hosts are the names and addresses of a server; empty for a client alone.
	Hosts []string
}

// Open loads the authority of a directory, or makes it.
func Open(dir string) (*Authority, error) { return open(dir, "keelson-ca") }

func open(dir, name string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	a := &Authority{dir: dir}
	certPEM, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if errors.Is(err, fs.ErrNotExist) {
		return a, a.create(name)
	}
	if err != nil {
		return nil, err
	}
	a.pem = certPEM
	if a.cert, err = parseCert(certPEM); err != nil {
		return nil, fmt.Errorf("%s/ca.crt: %w", dir, err)
	}
	if a.key, err = readKey(filepath.Join(dir, "ca.key")); err != nil {
		return nil, err
	}
	return a, closed(filepath.Join(dir, "ca.key"), 0o600)
}

// CA is the authority's certificate, PEM.
func (a *Authority) CA() []byte { return a.pem }

// Hash identifies the authority: "sha256:" and the digest of its public key, as
// kubeadm writes it.
func (a *Authority) Hash() string { return Hash(a.cert) }

// Hash identifies a certificate's public key.
func Hash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (a *Authority) create(name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(authorityLifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return err
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return err
	}
	a.key, a.pem = key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	// The key first: a certificate without its key could not be mended.
	if err := writeKey(filepath.Join(a.dir, "ca.key"), key); err != nil {
		return err
	}
	return replace(filepath.Join(a.dir, "ca.crt"), a.pem, 0o644)
}

// Ensure makes the certificate of an identity unless there is a good one.
func (a *Authority) Ensure(id Identity) error {
	return a.ensure(filepath.Join(a.dir, id.Name), id)
}

func (a *Authority) ensure(dir string, id Identity) error {
	if err := private(dir, 0o700); err != nil {
		return err
	}
	if err := Keep(filepath.Join(dir, "ca.crt"), a.pem, 0o644); err != nil {
		return err
	}
	if a.good(dir, id) {
		return closed(filepath.Join(dir, "tls.key"), 0o600)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: id.CommonName, Organization: id.Organization},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(leafLifetime),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if len(id.Hosts) > 0 {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, h := range id.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	if err := writeKey(filepath.Join(dir, "tls.key"), key); err != nil {
		return err
	}
	// The authority follows the leaf, so that a joining node can check it
	// against the hash in its token.
	chain := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), a.pem...)
	return replace(filepath.Join(dir, "tls.crt"), chain, 0o644)
}

// good tells whether the certificate in dir is this authority's, lasts, and has
// the hosts asked for.
func (a *Authority) good(dir string, id Identity) bool {
	data, err := os.ReadFile(filepath.Join(dir, "tls.crt"))
	if err != nil {
		return false
	}
	cert, err := parseCert(data)
	if err != nil || cert.CheckSignatureFrom(a.cert) != nil {
		return false
	}
	if _, err := os.Stat(filepath.Join(dir, "tls.key")); err != nil {
		return false
	}
	have := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		have = append(have, ip.String())
	}
	for _, h := range id.Hosts {
		if !slices.Contains(have, h) {
			return false
		}
	}
	return time.Until(cert.NotAfter) > leafLifetime/3 && cert.Subject.CommonName == id.CommonName
}

// EnsureKey makes a signing key (the service accounts') unless it is there.
func EnsureKey(path string) error {
	if _, err := os.Stat(path); err == nil {
		return closed(path, 0o600)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	return writeKey(path, key)
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		panic(err) // crypto/rand never fails on Linux
	}
	return n.Add(n, big.NewInt(1))
}

func parseCert(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no certificate in PEM form")
	}
	return x509.ParseCertificate(block.Bytes)
}

func readKey(path string) (crypto.Signer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s: no key in PEM form", path)
	}
	if k, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return k, nil
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: not a key that can sign", path)
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: not a key that can sign", path)
	}
	return s, nil
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return replace(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// private makes a directory that only its owner may use.
func private(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	return closed(dir, mode)
}

// closed takes away the rights that a mode does not have.
func closed(path string, mode os.FileMode) error {
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm()&^mode == 0 {
		return err
	}
	return os.Chmod(path, st.Mode().Perm()&mode)
}

// Keep gives a file its content and mode; one that has both is not touched.
func Keep(path string, data []byte, mode os.FileMode) error {
	have, err := os.ReadFile(path)
	if st, statErr := os.Stat(path); err == nil && statErr == nil && st.Mode().Perm() == mode && bytes.Equal(have, data) {
		return nil
	}
	return replace(path, data, mode)
}

// replace writes a file whole or not at all: what is cut off in the middle leaves
// the old one. It belongs to whom its directory belongs: who reads it again while
// it changes meets no file that is not his.
func replace(path string, data []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if dir, statErr := os.Stat(filepath.Dir(path)); statErr == nil && err == nil {
		if st, ok := dir.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
			err = f.Chown(int(st.Uid), int(st.Gid))
		}
	}
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// Package pki creates a cluster's certificates: an authority, identities issued by it, and a
// separate authority for the peer ports of apiservers. Each identity has a directory of its
// own. The package never overwrites a key whose certificate is still good, and never prints a
// key.
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

// Lifetimes of certificates. `keel up` renews leaves with less than a third of theirs left.
const (
	authorityLifetime = 10 * 365 * 24 * time.Hour
	leafLifetime      = 365 * 24 * time.Hour
)

// Authority issues a cluster's certificates.
type Authority struct {
	dir  string
	cert *x509.Certificate
	pem  []byte
	key  crypto.Signer
}

// Identity describes a certificate.
type Identity struct {
	// Name is the name of the directory.
	Name         string
	CommonName   string
	Organization []string
	// Hosts are the DNS names and IP addresses of a server. Empty means a client certificate.
	Hosts []string
}

// Open loads the authority in a directory, or creates it.
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

// CA returns the authority's certificate in PEM form.
func (a *Authority) CA() []byte { return a.pem }

// Hash identifies the authority. See the function Hash.
func (a *Authority) Hash() string { return Hash(a.cert) }

// Hash identifies a certificate by its public key: "sha256:" and the hexadecimal digest, as
// kubeadm writes it.
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
	// Write the key first: a certificate without its key could not be repaired.
	if err := writeKey(filepath.Join(a.dir, "ca.key"), key); err != nil {
		return err
	}
	return replace(filepath.Join(a.dir, "ca.crt"), a.pem, 0o644)
}

// Ensure creates the certificate of an identity, unless there is a good one.
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
	// The chain includes the authority, so that a joining node can compare it with the hash in
	// its token.
	chain := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), a.pem...)
	return replace(filepath.Join(dir, "tls.crt"), chain, 0o644)
}

// good reports whether dir contains a certificate with this authority, common name and hosts
// that is valid for more than a third of leafLifetime.
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

// EnsureKey creates a signing key (for service account tokens), unless it exists.
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
		return nil, errors.New("not a certificate in PEM form")
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
		return nil, fmt.Errorf("%s: not a key in PEM form", path)
	}
	if k, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
		return k, nil
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: not a signing key", path)
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: not a signing key", path)
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

// private creates a directory that only its owner may use.
func private(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(dir, mode); err != nil {
		return err
	}
	return closed(dir, mode)
}

// closed removes permissions that a mode does not include.
func closed(path string, mode os.FileMode) error {
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm()&^mode == 0 {
		return err
	}
	return os.Chmod(path, st.Mode().Perm()&mode)
}

// Keep writes a file, unless it has this content and mode already.
func Keep(path string, data []byte, mode os.FileMode) error {
	have, err := os.ReadFile(path)
	if st, statErr := os.Stat(path); err == nil && statErr == nil && st.Mode().Perm() == mode && bytes.Equal(have, data) {
		return nil
	}
	return replace(path, data, mode)
}

// replace replaces a file atomically. The new file belongs to the owner of its directory, so
// that a service that reads it while it changes never meets a file of another user.
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

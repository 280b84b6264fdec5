// Package identitytest makes certificate authorities and identity directories for
// tests. It must never be linked into a program.
package identitytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/loopbacktest"
)

// CA signs certificates.
type CA struct {
	Cert *x509.Certificate
	Key  *ecdsa.PrivateKey
	PEM  []byte
}

// NewCA makes a CA, of a name if there is one.
func NewCA(t testing.TB, name ...string) *CA {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber:          serial(t),
		Subject:               pkix.Name{CommonName: strings.Join(append(name, "test-ca"), " ")},
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(time.Hour),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{Cert: cert, Key: key, PEM: encode("CERTIFICATE", der)}
}

// Issue makes a certificate for the user in the groups, good for loopback as
// client and server; change may alter the template.
func (ca *CA) Issue(t testing.TB, user string, groups []string, change ...func(*x509.Certificate)) (certPEM, keyPEM []byte) {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: serial(t),
		Subject:      pkix.Name{CommonName: user, Organization: groups},
		NotBefore:    time.Now().Add(-time.Minute),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), loopbacktest.IP()},
	}
	for _, f := range change {
		f(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Cert, key.Public(), ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return encode("CERTIFICATE", der), encode("PRIVATE KEY", keyDER)
}

// Write issues a certificate into dir.
func (ca *CA) Write(t testing.TB, dir, user string, groups ...string) {
	t.Helper()
	cert, key := ca.Issue(t, user, groups)
	ca.write(t, dir, cert, key)
}

// WriteFor issues a certificate into dir that expires after life.
func (ca *CA) WriteFor(t testing.TB, life time.Duration, dir, user string) {
	t.Helper()
	cert, key := ca.Issue(t, user, nil, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(life) })
	ca.write(t, dir, cert, key)
}

func (ca *CA) write(t testing.TB, dir string, cert, key []byte) {
	t.Helper()
	for name, data := range map[string][]byte{identity.CertFile: cert, identity.KeyFile: key, identity.CAFile: ca.PEM} {
		tmp := filepath.Join(dir, name+".new")
		if err := os.WriteFile(tmp, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// Source is a fresh identity for the user.
func (ca *CA) Source(t testing.TB, user string, groups ...string) *identity.Source {
	t.Helper()
	dir := t.TempDir()
	ca.Write(t, dir, user, groups...)
	s, err := identity.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func serial(t testing.TB) *big.Int {
	t.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

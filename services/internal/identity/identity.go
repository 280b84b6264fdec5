// Package identity is a process's TLS identity: its certificate, its key and the cluster's
// CA, read from a directory and read again when they change, so that certificates are
// renewed without a restart.
//
// It must never log a private key, and never use half of a renewal: while the files do not
// match each other, the last ones that did stay in use.
package identity

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

// The files of an identity directory.
const (
	CertFile = "tls.crt"
	KeyFile  = "tls.key"
	CAFile   = "ca.crt"
)

// Source is an identity that follows its directory. It is safe for concurrent
// use.
type Source struct {
	dir     string
	current atomic.Pointer[Material]
	mu      sync.Mutex // one reader of the files at a time
	after   func(time.Duration, func()) *time.Timer
	refused stamp // the files that could not be used, so that this is logged once
}

// Material is the contents of an identity directory at one time. It is shared and must not
// be modified.
type Material struct {
	// Certificate is the chain with its key; Certificate.Leaf is set.
	Certificate tls.Certificate
	// Roots are the cluster's CAs; RootsPEM are the same in PEM.
	Roots    *x509.CertPool
	RootsPEM []byte

	stamp  stamp
	server [2]*tls.Config // by whether client certificates are required
}

// Load reads the identity in dir. It fails if a file is missing or the files do not match.
func Load(dir string) (*Source, error) {
	s := &Source{dir: dir, after: time.AfterFunc}
	st, err := stampOf(dir)
	if err != nil {
		return nil, fmt.Errorf("identity %s: %w", dir, err)
	}
	m, err := read(dir, st)
	if err != nil {
		return nil, fmt.Errorf("identity %s: %w", dir, err)
	}
	s.current.Store(m)
	return s, nil
}

// Current returns the identity in the files now, or the last usable one. It costs three
// stat calls while the files do not change.
func (s *Source) Current() *Material {
	m := s.current.Load()
	st, err := stampOf(s.dir)
	if err != nil || st == m.stamp {
		return m
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if m = s.current.Load(); st == m.stamp || st == s.refused {
		return m
	}
	next, err := read(s.dir, st)
	if err != nil {
		s.refused = st
		slog.WarnContext(context.Background(), "identity changed on disk but cannot be used; keeping the last good one", "dir", s.dir, "error", err)
		return m
	}
	s.current.Store(next)
	slog.InfoContext(context.Background(), "identity reread", "dir", s.dir, "subject", next.Certificate.Leaf.Subject.String(), "not_after", next.Certificate.Leaf.NotAfter)
	return next
}

// Name returns the common name of the certificate, which is the process's user name in the
// cluster.
func (s *Source) Name() string { return s.current.Load().Certificate.Leaf.Subject.CommonName }

// ClientTLS returns a configuration for outgoing connections. Each handshake uses the
// certificate of that time; the CA is that of the time of this call. serverName, if given,
// replaces the dialled host in verification.
func (s *Source) ClientTLS(serverName ...string) *tls.Config {
	c := clientTLS(s.Current(), serverName...)
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &s.Current().Certificate, nil
	}
	return c
}

// clientTLS uses m, whatever the files contain later.
func clientTLS(m *Material, serverName ...string) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12,
		RootCAs:    m.Roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &m.Certificate, nil
		},
	}
	if len(serverName) > 0 {
		c.ServerName = serverName[0]
	}
	return c
}

// ServerTLS returns a configuration for a listener. With requireClientCert, clients without
// a certificate of the cluster's CA are disconnected. Without it, a certificate is requested
// and NOT verified: the server must verify it before relying on it, and can answer a client
// with a foreign certificate with an error that says so.
func (s *Source) ServerTLS(requireClientCert bool) *tls.Config {
	kind := 0
	if requireClientCert {
		kind = 1
	}
	c := serverConfig(s.Current(), requireClientCert)
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return s.Current().server[kind], nil
	}
	return c
}

// ClientCredentials returns gRPC credentials like ClientTLS, except that the CA, too, is that
// of the time of each handshake, and that each connection ends before the certificate that
// it uses expires.
func (s *Source) ClientCredentials(serverName ...string) credentials.TransportCredentials {
	return &clientCredentials{
		TransportCredentials: credentials.NewTLS(s.ClientTLS(serverName...)),
		source:               s,
		serverName:           serverName,
	}
}

// ServerCredentials returns gRPC credentials for ServerTLS.
func (s *Source) ServerCredentials(requireClientCert bool) credentials.TransportCredentials {
	return credentials.NewTLS(s.ServerTLS(requireClientCert))
}

type clientCredentials struct {
	credentials.TransportCredentials
	source     *Source
	serverName []string
}

// Clone implements credentials.TransportCredentials.
func (c *clientCredentials) Clone() credentials.TransportCredentials {
	return c.source.ClientCredentials(c.serverName...)
}

func serverConfig(m *Material, requireClientCert bool) *tls.Config {
	c := &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{m.Certificate},
		ClientCAs:    m.Roots,
		ClientAuth:   tls.RequestClientCert,
		NextProtos:   []string{"h2", "http/1.1"},
	}
	if requireClientCert {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return c
}

func read(dir string, st stamp) (*Material, error) {
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile))
	if err != nil {
		return nil, err
	}
	if cert.Leaf == nil {
		if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, fmt.Errorf("%s: %w", CertFile, err)
		}
	}
	pem, err := os.ReadFile(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New(CAFile + " holds no certificate in PEM")
	}
	m := &Material{Certificate: cert, Roots: roots, RootsPEM: pem, stamp: st}
	m.server = [2]*tls.Config{serverConfig(m, false), serverConfig(m, true)}
	return m, nil
}

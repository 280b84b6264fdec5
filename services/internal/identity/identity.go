// Package identity is who a process is on the wire: its certificate, its key and
// the cluster's CA, read from a directory and read again when they change, so
// that certificates are renewed without a restart.
//
// It must never log or return a private key, and never go on with half of a
// renewal: if the files in the directory do not fit together, the last good ones
// stay in use.
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
	refused stamp // files that could not be used, so as not to say it at each handshake
}

// Material is an identity as it was at one time. It is shared: nobody may change
// it.
type Material struct {
	// Certificate is the chain with its key; Certificate.Leaf is set.
	Certificate tls.Certificate
	// Roots are the cluster's CAs, RootsPEM the same in PEM.
	Roots    *x509.CertPool
	RootsPEM []byte

	stamp  stamp
	server [2]*tls.Config // by whether client certificates are required
}

// Load reads the identity in dir.
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

// Current is the identity as the files have it now; it costs three stat calls
// while they do not change.
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

// Name is the common name of the certificate: the user that the cluster knows
// this process as.
func (s *Source) Name() string { return s.current.Load().Certificate.Leaf.Subject.CommonName }

// ClientTLS is for connections that this process opens: it shows the certificate
// as it is at each handshake. The CA is the one of the time of this call. A
// server name replaces the dialled host in verification.
func (s *Source) ClientTLS(serverName ...string) *tls.Config {
	c := clientTLS(s.Current(), serverName...)
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return &s.Current().Certificate, nil
	}
	return c
}

// clientTLS shows and trusts m, whatever the files hold later.
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

// ServerTLS is for a listener. With requireClientCert, a client shows a
// certificate of the cluster's CA or is cut off. Without, a certificate is asked
// for and NOT verified: whoever serves must verify what he wants to rely on, and
// can answer a foreign one with an error that says so.
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

// ClientCredentials are gRPC's, like ClientTLS but with the CA as it is at each
// handshake too, and each connection ends with the certificate that it has shown.
func (s *Source) ClientCredentials(serverName ...string) credentials.TransportCredentials {
	return &clientCredentials{
		TransportCredentials: credentials.NewTLS(s.ClientTLS(serverName...)),
		source:               s,
		serverName:           serverName,
	}
}

// ServerCredentials are gRPC's for ServerTLS.
func (s *Source) ServerCredentials(requireClientCert bool) credentials.TransportCredentials {
	return credentials.NewTLS(s.ServerTLS(requireClientCert))
}

type clientCredentials struct {
	credentials.TransportCredentials
	source     *Source
	serverName []string
}

// Clone is a copy, as gRPC wants.
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

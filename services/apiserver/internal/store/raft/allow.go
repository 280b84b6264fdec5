package raft

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	// believed is how long a verified certificate is not verified again: dozens of requests a
	// second come with the same one.
	believed = 10 * time.Second
	// maxBelieved bounds the number of certificates that are remembered.
	maxBelieved = 64
)

// Certificates returns a check that allows callers whose TLS certificate was issued by the
// cluster's CA, is valid for clients, and has one of these common names. It verifies the
// certificate itself, because a server that also accepts tokens does not verify client
// certificates. The user that a caller acts for is not considered.
func Certificates(roots func() *x509.CertPool, names ...string) func(context.Context) error {
	c := &certificates{roots: roots, names: names, until: map[[sha256.Size]byte]time.Time{}}
	return c.allow
}

type certificates struct {
	roots func() *x509.CertPool
	names []string

	mu    sync.Mutex
	until map[[sha256.Size]byte]time.Time
}

func (c *certificates) allow(ctx context.Context) error {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return status.Error(codes.Unauthenticated, "no peer")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return status.Error(codes.Unauthenticated, "members of the raft store must present a certificate")
	}
	chain := info.State.PeerCertificates
	hash := sha256.Sum256(chain[0].Raw)
	now := time.Now()
	c.mu.Lock()
	good := now.Before(c.until[hash])
	c.mu.Unlock()
	if good {
		return nil
	}
	between := x509.NewCertPool()
	for _, other := range chain[1:] {
		between.AddCert(other)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots: c.roots(), Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return status.Errorf(codes.Unauthenticated, "certificate: %v", err)
	}
	if name := chain[0].Subject.CommonName; !slices.Contains(c.names, name) {
		return status.Errorf(codes.PermissionDenied, "%q is not a member of the raft store", name)
	}
	until := now.Add(believed)
	if chain[0].NotAfter.Before(until) {
		until = chain[0].NotAfter
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.until) >= maxBelieved {
		clear(c.until)
	}
	c.until[hash] = until
	return nil
}

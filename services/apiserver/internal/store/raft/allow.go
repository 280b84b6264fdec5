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
	// believed is how long a certificate is not verified again that was found
	// good: dozens of requests a second come with the same one.
	believed = 10 * time.Second
	// maxBelieved bounds how many are remembered.
	maxBelieved = 64
)

// Certificates allows callers whose TLS certificate is of the cluster's CA, good
// for a client, and has one of these common names. It verifies by itself: a server
// that takes tokens too leaves client certificates unverified. Whom a caller
// claims to act for does not count.
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
		return status.Error(codes.Unauthenticated, "members of the raft store show a certificate")
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
		return status.Errorf(codes.PermissionDenied, "%q is no member of the raft store", name)
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

package raft

import (
	"context"
	"crypto/x509"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// Certificates allows callers whose TLS certificate is of the cluster's CA, good
// for a client, and has one of these common names. It verifies by itself: a server
// that takes tokens too leaves client certificates unverified. Whom a caller
// claims to act for does not count.
func Certificates(roots func() *x509.CertPool, names ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		p, ok := peer.FromContext(ctx)
		if !ok {
			return status.Error(codes.Unauthenticated, "no peer")
		}
		info, ok := p.AuthInfo.(credentials.TLSInfo)
		if !ok || len(info.State.PeerCertificates) == 0 {
			return status.Error(codes.Unauthenticated, "members of the raft store show a certificate")
		}
		chain := info.State.PeerCertificates
		between := x509.NewCertPool()
		for _, c := range chain[1:] {
			between.AddCert(c)
		}
		if _, err := chain[0].Verify(x509.VerifyOptions{
			Roots: roots(), Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		}); err != nil {
			return status.Errorf(codes.Unauthenticated, "certificate: %v", err)
		}
		if name := chain[0].Subject.CommonName; !slices.Contains(names, name) {
			return status.Errorf(codes.PermissionDenied, "%q is no member of the raft store", name)
		}
		return nil
	}
}

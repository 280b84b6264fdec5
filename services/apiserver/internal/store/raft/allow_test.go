package raft

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/internal/identity/identitytest"
	"keelson.dev/services/internal/rpc"
)

func TestOnlyApiserversAreMembers(t *testing.T) {
	ca := identitytest.NewCA(t)
	id := ca.Source(t, "kube-apiserver")
	service := NewService(Certificates(func() *x509.CertPool { return id.Current().Roots }, "kube-apiserver"))
	single(t, Config{Service: service})
	server := rpc.NewServer(rpc.ServerConfig{Identity: id}) // like the apiserver's, this server does not verify certificates
	service.Register(server)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	defer func() { stop(); <-served }()
	issued := func(from *identitytest.CA, name string, change ...func(*x509.Certificate)) credentials.TransportCredentials {
		certPEM, keyPEM := from.Issue(t, name, []string{"system:masters"}, change...)
		cert, err := tls.X509KeyPair(certPEM, keyPEM)
		if err != nil {
			t.Fatal(err)
		}
		return credentials.NewTLS(&tls.Config{RootCAs: id.Current().Roots, Certificates: []tls.Certificate{cert}})
	}
	for _, c := range []struct {
		name  string
		creds credentials.TransportCredentials
		want  codes.Code
	}{
		{"an apiserver", issued(ca, "kube-apiserver"), codes.OK},
		{"a node", issued(ca, "system:node:n1"), codes.PermissionDenied},
		{"an administrator", issued(ca, "kubernetes-admin"), codes.PermissionDenied},
		{"another authority", issued(identitytest.NewCA(t), "kube-apiserver"), codes.Unauthenticated},
		{"a certificate for servers", issued(ca, "kube-apiserver", func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		}), codes.Unauthenticated},
		{"an expired certificate", issued(ca, "kube-apiserver", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }), codes.Unauthenticated},
		{"no certificate", credentials.NewTLS(&tls.Config{RootCAs: id.Current().Roots}), codes.Unauthenticated},
		{"no TLS", insecure.NewCredentials(), codes.Unavailable},
	} {
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(c.creds))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time, the certificate is remembered
			if _, err := raftv1.NewRaftServiceClient(conn).Identify(ctx, &raftv1.IdentifyRequest{}); status.Code(err) != c.want {
				t.Errorf("%s: %v, want %s", c.name, err, c.want)
			}
		}
		_ = conn.Close()
	}
	if err := service.allow(ctx); status.Code(err) != codes.Unauthenticated {
		t.Errorf("no peer: %v", err)
	}
	if err := service.allow(peer.NewContext(ctx, &peer.Peer{})); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a peer without TLS: %v", err)
	}
}

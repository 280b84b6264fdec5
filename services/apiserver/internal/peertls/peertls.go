// Package peertls authenticates apiservers to each other on their peer ports, where etcd, the
// raft store and relayed sessions have unrestricted access to the state. They use certificates of
// a separate authority, which signs nothing else and whose key no service has. A certificate of
// the cluster's authority is not accepted there, whatever it contains, and a peer's certificate
// is not accepted by the API.
//
// # Upgrades
//
// Clusters used to have a single authority, in which peers were identified by their common name.
// To upgrade one, an operator gives the apiservers a directory of peer certificates that contains
// the file [TransitionFile]. While that file exists, apiservers that are not upgraded yet are
// accepted and connected to as before, while two upgraded ones already use their peer
// certificates: a client sends [serverName], from which the server learns which certificate the
// client accepts, and a server names the peer authority, from which the client learns the same.
// When the file is removed, which takes effect at the next handshake, the cluster's authority is
// no longer accepted. Established connections are kept.
//
// Without peer certificates, the cluster's authority and the common name of the apiserver's own
// certificate are used. Peer certificates are picked up without a restart once they exist.
//
// The package must never present the cluster's certificate, nor accept one in a handshake, once
// there is a peer certificate and no TransitionFile.
package peertls

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"keelson.dev/services/apiserver/internal/store/raft"
	"keelson.dev/services/internal/identity"
)

const (
	// Dir is the directory of the peer certificate, below the directory of an apiserver's
	// identity.
	Dir = "peer"
	// TransitionFile is a file in Dir. While it exists, apiservers without a peer certificate are
	// accepted.
	TransitionFile = "accept-cluster-authority"

	// serverName is the SNI name of clients that trust the peer authority; the server presents
	// its peer certificate to them.
	serverName = "peer.keelson.internal"
)

// Identity is what an apiserver presents to other apiservers, and decides which it accepts.
type Identity struct {
	cluster *identity.Source
	dir     string
	mu      sync.Mutex                      // serializes loading from dir
	found   atomic.Pointer[identity.Source] // nil while there is no peer certificate
	refused atomic.Int64                    // modification time (ns) of a certificate that could not be loaded

	byPeers, byCluster func(context.Context) error
}

// Load returns the identity of an apiserver. cluster holds its certificate of the cluster's
// authority. dir is where the peer certificate is, or will be; if it is empty, there never is
// one.
func Load(cluster *identity.Source, dir string) (*Identity, error) {
	p := &Identity{cluster: cluster, dir: dir}
	p.byCluster = raft.Certificates(func() *x509.CertPool { return cluster.Current().Roots }, cluster.Name())
	p.byPeers = raft.Certificates(func() *x509.CertPool { return p.peer().Current().Roots }, identity.PeerName)
	if !Present(dir) {
		return p, nil
	}
	peer, err := load(dir)
	p.found.Store(peer)
	return p, err
}

func load(dir string) (*identity.Source, error) {
	peer, err := identity.Load(dir)
	if err != nil {
		return nil, err
	}
	if name := peer.Name(); name != identity.PeerName {
		return nil, fmt.Errorf("%s: the certificate is %q's, not a peer's (%q): `keel pki` and `keel up` write one", dir, name, identity.PeerName)
	}
	return peer, nil
}

// Present reports whether a directory contains a certificate.
func Present(dir string) bool {
	if dir == "" {
		return false
	}
	_, err := os.Stat(filepath.Join(dir, identity.CertFile))
	return err == nil
}

// peer returns the peer certificate, or nil if there is none yet.
func (p *Identity) peer() *identity.Source {
	if s := p.found.Load(); s != nil || !Present(p.dir) {
		return s
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.found.Load(); s != nil {
		return s
	}
	st, err := os.Stat(filepath.Join(p.dir, identity.CertFile))
	if err != nil || st.ModTime().UnixNano() == p.refused.Load() {
		return nil
	}
	s, err := load(p.dir)
	if err != nil {
		p.refused.Store(st.ModTime().UnixNano())
		slog.WarnContext(context.Background(), "cannot load the new peer certificate", "dir", p.dir, "error", err)
		return nil
	}
	slog.InfoContext(context.Background(), "now using the peer certificate", "dir", p.dir)
	p.found.Store(s)
	return s
}

// Strict reports whether only peer certificates are accepted.
func (p *Identity) Strict() bool { return !p.mixed() }

// mixed reports whether certificates of the cluster's authority are accepted.
func (p *Identity) mixed() bool {
	if p.peer() == nil {
		return true
	}
	_, err := os.Stat(filepath.Join(p.dir, TransitionFile))
	return err == nil
}

// Client returns the configuration for connections to other apiservers, at any address.
func (p *Identity) Client(protocols ...string) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		GetClientCertificate: func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return p.shown(p.peer() != nil && slices.ContainsFunc(asked.AcceptableCAs, p.isIssuer)), nil
		},
		// VerifyConnection does everything that is skipped here, except comparing the host name:
		// a peer is identified by its certificate, at any address.
		InsecureSkipVerify: true,
		VerifyConnection:   p.verify(x509.ExtKeyUsageServerAuth),
	}
	if p.peer() != nil {
		c.ServerName = serverName
	}
	return c
}

// Server returns the configuration for listeners that other apiservers connect to.
func (p *Identity) Server(protocols ...string) *tls.Config {
	config := func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		authority := p.cluster
		if peer := p.peer(); peer != nil {
			authority = peer
		}
		return &tls.Config{
			MinVersion:             tls.VersionTLS13,
			NextProtos:             protocols,
			Certificates:           []tls.Certificate{*p.shown(hello.ServerName == serverName)},
			ClientCAs:              authority.Current().Roots,
			ClientAuth:             tls.RequireAnyClientCert, // VerifyConnection verifies it
			VerifyConnection:       p.verify(x509.ExtKeyUsageClientAuth),
			SessionTicketsDisabled: true,
		}, nil
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: protocols, GetConfigForClient: config}
}

// Allow returns a gRPC error unless the caller, on a connection of a Server listener, is another
// apiserver whose certificate is still valid. A connection that was accepted while the cluster's
// authority was accepted remains allowed, because its client would not know that it must
// reconnect.
func (p *Identity) Allow(ctx context.Context) error {
	if p.peer() != nil && p.byPeers(ctx) == nil {
		return nil
	}
	return p.byCluster(ctx)
}

// shown returns the certificate to present. known is true if the other side accepts peer
// certificates.
func (p *Identity) shown(known bool) *tls.Certificate {
	if peer := p.peer(); peer != nil && (known || !p.mixed()) {
		return &peer.Current().Certificate
	}
	return &p.cluster.Current().Certificate
}

// isIssuer reports whether name is that of the peer authority.
func (p *Identity) isIssuer(name []byte) bool {
	return bytes.Equal(name, p.peer().Current().Certificate.Leaf.RawIssuer)
}

func (p *Identity) verify(usage x509.ExtKeyUsage) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("the other apiserver presented no certificate")
		}
		peer := p.peer()
		if peer == nil {
			return check(s.PeerCertificates, p.cluster, p.cluster.Name(), usage)
		}
		err := check(s.PeerCertificates, peer, identity.PeerName, usage)
		if err != nil && p.mixed() && check(s.PeerCertificates, p.cluster, p.cluster.Name(), usage) == nil {
			return nil
		}
		return err
	}
}

// check verifies a chain against an authority and compares the common name.
func check(chain []*x509.Certificate, authority *identity.Source, name string, usage x509.ExtKeyUsage) error {
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{
		Roots: authority.Current().Roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage},
	}); err != nil {
		return err
	}
	if got := chain[0].Subject.CommonName; got != name {
		return fmt.Errorf("%q is not an apiserver", got)
	}
	return nil
}

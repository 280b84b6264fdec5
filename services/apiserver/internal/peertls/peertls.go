// Package peertls is how apiservers know each other on their peer ports, where etcd,
// the raft store and relayed sessions have the run of the state: by certificates of
// an authority of their own, which signs nothing else and whose key no service has.
// A certificate of the cluster's authority, whatever it says, is not accepted there,
// and a peer's is not accepted by the API.
//
// # Upgrades
//
// Clusters used to have one authority, and peers were known by their common name in
// it. Whoever upgrades one gives the apiservers a directory of peer certificates
// with the file [TransitionFile] in it. While that file is there, an apiserver that
// is not upgraded yet is accepted and spoken to as before; two upgraded ones use
// their peer certificates all the same: a client offers [serverName], by which a
// server knows which certificate it will accept, and a server names the authority of
// peers, by which a client knows. When the file is removed, which takes effect at
// the next handshake, the cluster's authority has no say any more. Connections that
// are there stay.
//
// Without peer certificates, the cluster's authority and the common name of the own
// certificate count, as before, until there are some: they need no restart.
//
// It must never show the cluster's certificate, or accept one in a handshake, once
// there is a peer's and no TransitionFile.
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
	// Dir is the directory of peer certificates in that of an apiserver's identity.
	Dir = "peer"
	// TransitionFile in it says that there may be apiservers without one.
	TransitionFile = "accept-cluster-authority"

	// serverName signals to a server that the client trusts the peer authority.
	serverName = "peer.keelson.internal"
)

// Identity is what an apiserver shows to other apiservers, and whom it accepts.
type Identity struct {
	cluster *identity.Source
	dir     string
	mu      sync.Mutex                      // one reader of dir at a time
	found   atomic.Pointer[identity.Source] // nil where there is no peer certificate
	refused atomic.Int64                    // time of a certificate that could not be used

	byPeers, byCluster func(context.Context) error
}

// Load makes the identity of an apiserver whose certificate of the cluster's
// authority is cluster. dir is where the peer certificate is, or will be; empty is
// without one.
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

// Present reports whether a directory holds a certificate.
func Present(dir string) bool {
	if dir == "" {
		return false
	}
	_, err := os.Stat(filepath.Join(dir, identity.CertFile))
	return err == nil
}

// peer is the peer certificate, or nil while there is none.
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
		slog.Warn("there is a peer certificate now, but it cannot be used", "dir", p.dir, "error", err)
		return nil
	}
	slog.Info("apiservers know each other by peer certificates from now on", "dir", p.dir)
	p.found.Store(s)
	return s
}

// Strict reports whether only peer certificates are accepted.
func (p *Identity) Strict() bool { return !p.mixed() }

// mixed reports whether the cluster's authority counts here.
func (p *Identity) mixed() bool {
	if p.peer() == nil {
		return true
	}
	_, err := os.Stat(filepath.Join(p.dir, TransitionFile))
	return err == nil
}

// Client is for connections to other apiservers, wherever they are.
func (p *Identity) Client(protocols ...string) *tls.Config {
	c := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		GetClientCertificate: func(asked *tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return p.shown(p.peer() != nil && slices.ContainsFunc(asked.AcceptableCAs, p.isIssuer)), nil
		},
		// VerifyConnection does all that is skipped here but comparing the host: a peer
		// is known by its certificate, wherever it is.
		InsecureSkipVerify: true,
		VerifyConnection:   p.verify(x509.ExtKeyUsageServerAuth),
	}
	if p.peer() != nil {
		c.ServerName = serverName
	}
	return c
}

// Server is for the listeners where other apiservers connect.
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

// Allow returns an error of gRPC unless the caller on a connection of Server's is
// another apiserver, whose certificate is still good. A connection that was accepted
// while the cluster's authority counted stays: its client would not know that it has
// to make another.
func (p *Identity) Allow(ctx context.Context) error {
	if p.peer() != nil && p.byPeers(ctx) == nil {
		return nil
	}
	return p.byCluster(ctx)
}

// shown is the certificate for another that knows peers' certificates, or not.
func (p *Identity) shown(known bool) *tls.Certificate {
	if peer := p.peer(); peer != nil && (known || !p.mixed()) {
		return &peer.Current().Certificate
	}
	return &p.cluster.Current().Certificate
}

// isIssuer reports whether a name is that of the authority of peers.
func (p *Identity) isIssuer(name []byte) bool {
	return bytes.Equal(name, p.peer().Current().Certificate.Leaf.RawIssuer)
}

func (p *Identity) verify(usage x509.ExtKeyUsage) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("the other apiserver shows no certificate")
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

// check verifies a chain up to an authority, for a common name.
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
		return fmt.Errorf("%q is no apiserver", got)
	}
	return nil
}

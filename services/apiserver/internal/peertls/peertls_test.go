package peertls_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	memberv1 "keelson.dev/proto/keelson/member/v1"
	"keelson.dev/services/apiserver/internal/peertls"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/identity/identitytest"
)

// site holds the two authorities of a cluster.
type site struct {
	*testing.T
	cluster, peers *identitytest.CA
}

func newSite(t *testing.T) *site {
	return &site{t, identitytest.NewCA(t), identitytest.NewCA(t, "peers")}
}

// apiserver returns the identity of an upgraded apiserver and its directory.
func (s *site) apiserver(transition bool) (*peertls.Identity, string) {
	s.Helper()
	dir := s.TempDir()
	s.peers.Write(s.T, dir, identity.PeerName)
	if transition {
		s.touch(dir)
	}
	p, err := peertls.Load(s.cluster.Source(s.T, "kube-apiserver"), dir)
	if err != nil {
		s.Fatal(err)
	}
	return p, dir
}

func (s *site) touch(dir string) {
	s.Helper()
	if err := os.WriteFile(filepath.Join(dir, peertls.TransitionFile), nil, 0o600); err != nil {
		s.Fatal(err)
	}
}

// before returns the identity of an apiserver without a peer certificate.
func (s *site) before(ca *identitytest.CA, name string) *peertls.Identity {
	s.Helper()
	p, err := peertls.Load(ca.Source(s.T, name), "")
	if err != nil {
		s.Fatal(err)
	}
	return p
}

// handshake returns the certificates that the two sides received, as issuer and name.
func handshake(t *testing.T, server, client *tls.Config) (string, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	type result struct {
		saw string
		err error
	}
	saw := func(c *tls.Conn) string {
		if p := c.ConnectionState().PeerCertificates; len(p) > 0 {
			return p[0].Issuer.CommonName + "/" + p[0].Subject.CommonName
		}
		return "no certificate"
	}
	done := make(chan result, 1)
	go func() {
		c := tls.Server(a, server)
		err := c.Handshake()
		if err == nil {
			_, err = c.Write([]byte("x"))
		}
		_ = a.Close()
		done <- result{saw(c), err}
	}()
	c := tls.Client(b, client)
	err := c.Handshake()
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	_ = b.Close()
	r := <-done
	return r.saw + " to " + saw(c), errors.Join(err, r.err)
}

// TestHandshakes checks which connections are accepted before, during and after an upgrade.
func TestHandshakes(t *testing.T) {
	s := newSite(t)
	strict, _ := s.apiserver(false)
	mixed, _ := s.apiserver(true)
	old := s.before(s.cluster, "kube-apiserver")
	scheduler := s.before(s.cluster, "system:kube-scheduler")
	foreign := s.before(identitytest.NewCA(t, "peers"), identity.PeerName)
	// A certificate of the cluster's authority with a peer's name.
	disguised := s.before(s.cluster, identity.PeerName)
	// A certificate of the peer authority with another name.
	other := s.before(s.peers, "kube-apiserver")
	api := s.cluster.Source(t, "kube-apiserver")
	const peer, cluster = "peers test-ca/keelson-peer", "test-ca/kube-apiserver"
	for name, test := range map[string]struct {
		server, client *tls.Config
		want           string // empty if refused
	}{
		"after: peers":                   {strict.Server(), strict.Client(), peer + " to " + peer},
		"after: old client":              {strict.Server(), old.Client(), ""},
		"after: old server":              {old.Server(), strict.Client(), ""},
		"after: scheduler":               {strict.Server(), scheduler.Client(), ""},
		"after: name of a peer":          {strict.Server(), disguised.Client(), ""},
		"after: server in a peer's name": {disguised.Server(), strict.Client(), ""},
		"after: unknown authority":       {strict.Server(), foreign.Client(), ""},
		"after: another name":            {strict.Server(), other.Client(), ""},
		"after: no certificate":          {strict.Server(), &tls.Config{InsecureSkipVerify: true}, ""},
		"during: peers":                  {mixed.Server(), mixed.Client(), peer + " to " + peer},
		"during: old client":             {mixed.Server(), old.Client(), cluster + " to " + cluster},
		"during: old server":             {old.Server(), mixed.Client(), cluster + " to " + cluster},
		"during: real old server":        {api.ServerTLS(true), mixed.Client(), cluster + " to " + cluster},
		"during: strict client":          {mixed.Server(), strict.Client(), peer + " to " + peer},
		"during: strict server":          {strict.Server(), mixed.Client(), peer + " to " + peer},
		"during: scheduler":              {mixed.Server(), scheduler.Client(), ""},
		"during: name of a peer":         {mixed.Server(), disguised.Client(), ""},
		"during: unknown authority":      {mixed.Server(), foreign.Client(), ""},
		"before: apiservers":             {old.Server(), old.Client(), cluster + " to " + cluster},
		"before: scheduler":              {old.Server(), scheduler.Client(), ""},
		"a peer at the API":              {api.ServerTLS(true), strict.Client(), ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := handshake(t, test.server, test.client)
			switch {
			case test.want == "" && err == nil:
				t.Errorf("accepted: %s", got)
			case test.want != "" && (err != nil || got != test.want):
				t.Errorf("%s, %v; want %s", got, err, test.want)
			}
		})
	}
}

// TestTransitionEnds removes the file, which takes effect without a restart.
func TestTransitionEnds(t *testing.T) {
	s := newSite(t)
	p, dir := s.apiserver(true)
	old := s.before(s.cluster, "kube-apiserver")
	server, client := p.Server(), p.Client()
	if _, err := handshake(t, server, old.Client()); err != nil || p.Strict() {
		t.Fatalf("while the file exists: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, peertls.TransitionFile)); err != nil {
		t.Fatal(err)
	}
	if got, err := handshake(t, server, old.Client()); err == nil || !p.Strict() {
		t.Errorf("an old client was accepted: %s", got)
	}
	if got, err := handshake(t, old.Server(), client); err == nil {
		t.Errorf("an old server was accepted: %s", got)
	}
}

// TestAllow checks callers again on established connections.
func TestAllow(t *testing.T) {
	s := newSite(t)
	p, dir := s.apiserver(true)
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(p.Server("h2"))), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		if err := p.Allow(stream.Context()); err != nil {
			return err
		}
		return status.Error(codes.Unimplemented, "welcome")
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() { server.Stop(); <-served })
	dial := func(p *peertls.Identity) *grpc.ClientConn {
		c, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(p.Client())), grpc.WithNoProxy())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	ask := func(c *grpc.ClientConn) codes.Code {
		_, err := memberv1.NewPeerServiceClient(c).Status(t.Context(), &memberv1.StatusRequest{}, grpc.WaitForReady(true))
		return status.Code(err)
	}
	before := s.before(s.cluster, "kube-apiserver")
	peer, old := dial(p), dial(before)
	if a, b := ask(peer), ask(old); a != codes.Unimplemented || b != codes.Unimplemented {
		t.Fatalf("during: %s, %s", a, b)
	}
	if err := os.Remove(filepath.Join(dir, peertls.TransitionFile)); err != nil {
		t.Fatal(err)
	}
	if a, b := ask(peer), ask(old); a != codes.Unimplemented || b != codes.Unimplemented {
		t.Errorf("after: %s, %s: want established connections to be kept", a, b)
	}
	c := dial(before)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := memberv1.NewPeerServiceClient(c).Status(ctx, &memberv1.StatusRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("a new connection: %v, want Unavailable", err)
	}
}

// TestPeerCertificateComesLater checks that a running apiserver picks up its peer certificate,
// and that it keeps accepting apiservers without one while the transition file exists.
func TestPeerCertificateComesLater(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	p, err := peertls.Load(s.cluster.Source(t, "kube-apiserver"), dir)
	if err != nil {
		t.Fatal(err)
	}
	old := s.before(s.cluster, "kube-apiserver")
	upgraded, _ := s.apiserver(true)
	server, client := p.Server(), p.Client()
	const peer, cluster = "peers test-ca/keelson-peer", "test-ca/kube-apiserver"
	check := func(when string, server, client *tls.Config, want string) {
		t.Helper()
		if got, err := handshake(t, server, client); got != want || err != nil {
			t.Errorf("%s: %s, %v; want %s", when, got, err, want)
		}
	}
	check("without, old client", server, old.Client(), cluster+" to "+cluster)
	check("without, upgraded client", server, upgraded.Client(), cluster+" to "+cluster)
	check("without, upgraded server", upgraded.Server(), client, cluster+" to "+cluster)
	s.touch(dir)
	s.peers.Write(t, dir, identity.PeerName)
	check("with, old client", server, old.Client(), cluster+" to "+cluster)
	check("with, old server", old.Server(), client, cluster+" to "+cluster)
	check("with, upgraded client", server, upgraded.Client(), peer+" to "+peer)
	check("with, upgraded server", upgraded.Server(), p.Client(), peer+" to "+peer)
	strict, _ := s.apiserver(false)
	check("with, strict server, earlier client", strict.Server(), client, peer+" to "+peer)
	if p.Strict() {
		t.Error("strict although the transition file exists")
	}
}

func TestLoad(t *testing.T) {
	s := newSite(t)
	id := s.cluster.Source(t, "kube-apiserver")
	dir := t.TempDir()
	sub := filepath.Join(dir, peertls.Dir)
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	s.peers.Write(t, sub, "kube-apiserver")
	if _, err := peertls.Load(id, sub); err == nil || !strings.Contains(err.Error(), "not a peer's") {
		t.Errorf("a certificate with another name: %v", err)
	}
	if peertls.Present("") || peertls.Present(dir) || !peertls.Present(sub) {
		t.Error("Present must be true only for the directory with a certificate")
	}
}

package member

import (
	"context"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	memberv1 "keelson.dev/proto/keelson/member/v1"
	"keelson.dev/services/apiserver/internal/peertls"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/raft"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/identity/identitytest"
	"keelson.dev/services/internal/rpc"
)

// peersOf returns the peer identity of a cluster without a peer authority.
func peersOf(t *testing.T, id *identity.Source) *peertls.Identity {
	t.Helper()
	p, err := peertls.Load(id, "")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// named is a PeerService whose Status returns name and members.
type named struct {
	memberv1.UnimplementedPeerServiceServer
	name    string
	members []*memberv1.Member
}

func (n *named) Status(context.Context, *memberv1.StatusRequest) (*memberv1.StatusResponse, error) {
	return &memberv1.StatusResponse{Name: n.name, Members: n.members}, nil
}

// serve starts a peer service with the given identity and returns its address.
func serve(t *testing.T, id *identity.Source, n *named) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := rpc.NewServer(rpc.ServerConfig{Identity: id, RequireClientCert: true})
	memberv1.RegisterPeerServiceServer(server, n)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	t.Cleanup(func() { server.Stop(); stop(); <-served })
	return l.Addr().String()
}

func ask(ctx context.Context, c grpc.ClientConnInterface) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	r, err := memberv1.NewPeerServiceClient(c).Status(ctx, &memberv1.StatusRequest{}, grpc.WaitForReady(true))
	return r.GetName(), err
}

// nowhere returns an apiserver identity whose certificate names none of this machine's
// addresses.
func nowhere(t *testing.T, ca *identitytest.CA) *identity.Source {
	t.Helper()
	cert, key := ca.Issue(t, "kube-apiserver", nil, func(c *x509.Certificate) { c.DNSNames, c.IPAddresses = []string{"elsewhere"}, nil })
	dir := t.TempDir()
	for name, data := range map[string][]byte{identity.CertFile: cert, identity.KeyFile: key, identity.CAFile: ca.PEM} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	id, err := identity.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// The book finds a member that has moved, although another member now answers at its old
// address.
func TestBookFollowsMembers(t *testing.T) {
	ca := identitytest.NewCA(t)
	id := ca.Source(t, "kube-apiserver")
	// Members are verified by certificate, not by host name: theirs do not name this machine.
	elsewhere := nowhere(t, ca)
	old := serve(t, id, &named{name: "another"})
	moved := serve(t, elsewhere, &named{name: "a"})
	var mu sync.Mutex
	known := []etcd.Known{{Name: "b", Service: "127.0.0.1:1"}}
	b := NewBook(peersOf(t, id), map[string]string{"a": old})
	b.Follow(func() []etcd.Known {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(known)
	})
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- b.Run(ctx) }()
	defer func() { cancel(); <-ran }()
	c, err := b.Dial("a")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.(*grpc.ClientConn).Close() }()
	if name, err := ask(ctx, c); err != nil || name != "another" { // only the seed is known
		t.Fatal(name, err)
	}
	b.mu.Lock()
	b.seeds = nil
	b.mu.Unlock()
	mu.Lock()
	known = append(known, etcd.Known{Name: "a", Service: moved})
	mu.Unlock()
	deadline := time.Now().Add(20 * time.Second)
	for {
		name, err := ask(ctx, c)
		if name == "a" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still %q, %v", name, err)
		}
		<-time.After(20 * time.Millisecond)
	}
	if a := b.Addresses("unknown"); len(a) != 0 {
		t.Errorf("addresses of an unknown member: %v", a)
	}
}

// Only a server with an apiserver's certificate from the cluster's authority is accepted as a
// member.
func TestBookKnowsMembersByCertificate(t *testing.T) {
	ca := identitytest.NewCA(t)
	id := ca.Source(t, "kube-apiserver")
	for name, other := range map[string]*identity.Source{
		"a node":            ca.Source(t, "system:node:n1"),
		"another authority": identitytest.NewCA(t).Source(t, "kube-apiserver"),
	} {
		b := NewBook(peersOf(t, id), map[string]string{"a": serve(t, other, &named{name: "a"})})
		c, err := b.Dial("a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if _, err := memberv1.NewPeerServiceClient(c).Status(ctx, &memberv1.StatusRequest{}); err == nil {
			t.Errorf("%s was accepted as a member", name)
		}
		cancel()
		_ = c.(*grpc.ClientConn).Close()
	}
}

// An apiserver without stores saves the members' addresses, and starts from that file when no
// apiserver named by its flags answers.
func TestDirectory(t *testing.T) {
	ca := identitytest.NewCA(t)
	id := ca.Source(t, "kube-apiserver")
	path := filepath.Join(t.TempDir(), "members.json")
	n := &named{name: "a"}
	a := serve(t, id, n)
	n.members = []*memberv1.Member{{Name: "a", PeerAddress: a}, {Name: "b", PeerAddress: "127.0.0.1:1"}}
	// The first answer comes from the API of the apiserver that the flags name.
	api, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := rpc.NewServer(rpc.ServerConfig{Identity: id})
	memberv1.RegisterMemberServiceServer(server, &inviting{members: n.members[:1]})
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- server.Serve(serving, api) }()
	d, err := OpenDirectory(ctx, path, Invitation{Endpoints: []string{api.Addr().String()}, Identity: id})
	server.Stop()
	stop()
	<-served
	if err != nil || !slices.Equal(d.Names(), []string{"a"}) {
		t.Fatal(d.Names(), err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatal(st, err)
	}
	book := NewBook(peersOf(t, id), nil)
	book.Follow(d.Known)
	if err := d.refresh(ctx, book.Dial); err != nil || !slices.Equal(d.Names(), []string{"a", "b"}) {
		t.Fatal(d.Names(), err)
	}
	closeAll(d.conns)
	again, err := OpenDirectory(ctx, path, Invitation{Endpoints: []string{"127.0.0.1:1"}, Identity: id})
	if err != nil || !slices.Equal(again.Names(), []string{"a", "b"}) {
		t.Fatal(again, err)
	}
	// A list without addresses does not replace the known members.
	if err := again.take([]*memberv1.Member{{Name: "x"}}); err != nil || len(again.Names()) != 2 {
		t.Fatal(again.Names(), err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenDirectory(ctx, path, Invitation{}); err == nil {
		t.Fatal("a truncated file was accepted")
	}
}

type inviting struct {
	memberv1.UnimplementedMemberServiceServer
	members []*memberv1.Member
}

func (i *inviting) Join(context.Context, *memberv1.JoinRequest) (*memberv1.JoinResponse, error) {
	return &memberv1.JoinResponse{Members: i.members}, nil
}

var _ Raft = (*raft.Store)(nil)

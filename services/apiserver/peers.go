package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	memberv1 "keelson.dev/proto/keelson/member/v1"
	nodev1 "keelson.dev/proto/keelson/node/v1"
	storev1 "keelson.dev/proto/keelson/store/v1"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/member"
	"keelson.dev/services/apiserver/internal/peertls"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/raft"
	"keelson.dev/services/apiserver/internal/store/wire"
	"keelson.dev/services/apiserver/internal/tunnel"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/rpc"
)

// peers are the apiservers that carry the stores together, by name: where the
// others reach each of them.
type peers map[string]string

// parsePeers reads name=host:port,…; self has to be among them.
func parsePeers(members []string, self string) (peers, error) {
	out := peers{}
	for _, m := range members {
		name, addr, ok := strings.Cut(m, "=")
		if _, _, err := net.SplitHostPort(addr); !ok || name == "" || err != nil {
			return nil, fmt.Errorf("%q: want name=host:port", m)
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("%s is named twice", name)
		}
		out[name] = addr
	}
	if _, ok := out[self]; len(out) > 0 && !ok {
		return nil, fmt.Errorf("--name %s is not among them", self)
	}
	return out, nil
}

// names of all members, in order.
func (p peers) names() []string {
	out := make([]string, 0, len(p))
	for name := range p {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// peerTLS is how this apiserver and the others know each other.
func (c *config) peerTLS(id *identity.Source) (*peertls.Identity, error) {
	dir := c.peerIdentity
	if dir == "" {
		dir = filepath.Join(c.Identity, peertls.Dir)
	} else if !peertls.Present(dir) {
		return nil, boot.Invalid("--peer-identity %s holds no certificate", dir)
	}
	p, err := peertls.Load(id, dir)
	if err != nil {
		return nil, boot.Invalid("--peer-identity: %w", err)
	}
	if !peertls.Present(dir) {
		slog.WarnContext(context.Background(), "apiservers know each other by the cluster's authority, as there are no certificates for peers in --identity; `keel up` and `keel pki` write them", "identity", c.Identity)
	}
	return p, nil
}

// nobody refuses every peer: an apiserver that is alone has none.
func nobody(context.Context) error {
	return status.Error(codes.PermissionDenied, "this apiserver is alone")
}

// members is this apiserver's part among those that carry the stores together; nil
// where it is alone.
type members struct {
	id   *peertls.Identity
	book *member.Book
	// seats are where the etcd of members may be found, before they say it themselves.
	seats map[string]string
	// joined says that others founded the stores.
	joined bool
	// admitted is closed when this one has its place, where it asks for one.
	admitted chan struct{}
	etcd     *etcd.Embedded
	service  *member.Service
	stores   *wire.Service
	// remote are the members whose stores are used, where this one is none.
	remote *wire.Members
}

// useMembers finds the members whose stores are used here.
func useMembers(ctx context.Context, g *boot.Group, cfg *config, id *identity.Source) (*members, error) {
	directory, err := member.OpenDirectory(ctx, filepath.Join(cfg.dataDir, "members.json"),
		member.Invitation{Endpoints: cfg.join, TokenFile: cfg.joinTokenFile, Identity: id})
	if err != nil {
		return nil, err
	}
	peer, err := cfg.peerTLS(id)
	if err != nil {
		return nil, err
	}
	m := &members{id: peer, book: member.NewBook(peer, nil)}
	m.book.Follow(directory.Known)
	m.remote = &wire.Members{Names: directory.Names, Dial: m.book.Dial}
	g.OnStop("connections to members", func(context.Context) error { m.remote.Close(); return nil })
	g.Go("address book", m.book.Run)
	g.Go("directory of members", func(ctx context.Context) error { return directory.Run(ctx, m.book.Dial) })
	return m, nil
}

// store is one of the members' stores.
func (m *members) store(g *boot.Group, place storev1.Place) store.Store {
	c := wire.NewClient(m.remote, place)
	g.OnStop("store of the members", func(context.Context) error { c.Close(); return nil })
	return c
}

// serveAPI serves MemberService to clients.
func (m *members) serveAPI(g *boot.Group, r grpc.ServiceRegistrar, rights authz.Authorizer) {
	switch {
	case m == nil:
	case m.remote != nil:
		forward := member.NewForward(m.remote.Names, m.book.Dial, rights)
		forward.Register(r)
		g.OnStop("calls to members", func(context.Context) error { forward.Close(); return nil })
	default:
		m.service.RegisterAPI(r, rights)
	}
}

// newMembers finds the other members: the flags name them, or those who are asked
// to let this one join. It returns once they have said who they are.
func newMembers(ctx context.Context, g *boot.Group, cfg *config, id *identity.Source) (*members, error) {
	switch {
	case len(cfg.Peers) == 0 && len(cfg.join) == 0:
		return nil, nil
	case len(cfg.Peers) == 0 && !cfg.member:
		return useMembers(ctx, g, cfg, id)
	}
	peer, err := cfg.peerTLS(id)
	if err != nil {
		return nil, err
	}
	if len(cfg.Peers) > 0 {
		return &members{id: peer, book: member.NewBook(peer, cfg.Peers), seats: cfg.EtcdPeers}, nil
	}
	m := &members{id: peer, joined: true, seats: map[string]string{}}
	seeds := map[string]string{}
	if !etcd.HasData(etcdDir(cfg)) {
		v := member.Invitation{Endpoints: cfg.join, TokenFile: cfg.joinTokenFile, Identity: id}
		r := &memberv1.JoinRequest{Name: cfg.name, PeerAddress: cfg.PeerAddress, EtcdAddress: cfg.EtcdAddress}
		found, err := v.Ask(ctx, r)
		if err != nil {
			return nil, err
		}
		m.admitted = make(chan struct{})
		g.Go("asking to join", func(ctx context.Context) error { return waitAsking(ctx, m.admitted, v, r) })
		for _, f := range found {
			if f.Name != cfg.name {
				seeds[f.Name], m.seats[f.Name] = f.PeerAddress, f.EtcdAddress
			}
		}
	}
	m.book = member.NewBook(peer, seeds)
	return m, nil
}

// askAgain is how often who waits to be let in asks again: an admission lasts for ten
// minutes, and the members may be without a quorum for longer.
const askAgain = 3 * time.Minute

// waitAsking asks again to be let in, until admitted is closed.
func waitAsking(ctx context.Context, admitted <-chan struct{}, v member.Invitation, r *memberv1.JoinRequest) error {
	tick := time.NewTicker(askAgain)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-admitted:
			return nil
		case <-ctx.Done():
			return nil
		}
		ask, cancel := context.WithTimeout(ctx, askAgain)
		_, err := v.Ask(ask, r)
		cancel()
		if err != nil && ctx.Err() == nil {
			slog.WarnContext(ctx, "asking again to join the members failed", "error", err)
		}
	}
}

// peerConfig is how etcd finds the others.
func (m *members) peerConfig(cfg *config) *etcd.PeerConfig {
	if m == nil {
		return nil
	}
	return &etcd.PeerConfig{
		Listen: cfg.etcdListenPeer, Address: cfg.EtcdAddress, Service: cfg.PeerAddress,
		Identity: m.id, Members: m.seats,
	}
}

// start goes on once etcd runs here.
func (m *members) start(g *boot.Group, cfg *config, s *etcd.Embedded) {
	m.etcd = s
	if m.admitted != nil {
		close(m.admitted)
	}
	m.book.Follow(s.Known)
	m.service = member.NewService(member.Config{Name: cfg.name, Etcd: s, Store: s, Dial: m.book.Dial})
	g.OnStop("connections to members", func(context.Context) error { m.service.Close(); return nil })
	g.Go("address book", m.book.Run)
	g.Go("place among the members", func(ctx context.Context) error {
		select {
		case <-m.service.Retired():
			return errors.New("this apiserver is to leave the members: its place is being taken away")
		case <-ctx.Done():
			return nil
		}
	})
	g.Go("members of etcd", func(ctx context.Context) error {
		if err := s.TakeIn(ctx, m.service.Admitted); err != nil || ctx.Err() != nil {
			return err
		}
		return errors.New("etcd has ended here: this apiserver has no place among the members any more (`keel member list` shows them), or its disk has failed")
	})
}

// raft is this apiserver's member of the raft store, in part.
func (m *members) raft(cfg *config) raft.Config {
	out := raft.Config{Name: cfg.name}
	if m == nil {
		return out
	}
	out.Members, out.Dial, out.Follow, out.Join = cfg.Peers.names(), m.book.Dial, m.etcd, m.joined
	if m.joined {
		out.Members = m.etcd.Names()
		if !slices.Contains(out.Members, cfg.name) {
			out.Members = append(out.Members, cfg.name)
		}
	}
	return out
}

// relays are the members but this one, to reach the nodes that are connected to them.
func (m *members) relays() []nodev1.RelayServiceClient {
	var conns []grpc.ClientConnInterface
	switch {
	case m == nil:
	case m.remote != nil:
		conns = m.remote.Conns()
	default:
		conns = m.service.Others()
	}
	var out []nodev1.RelayServiceClient
	for _, c := range conns {
		out = append(out, nodev1.NewRelayServiceClient(c))
	}
	return out
}

// servePeers serves what the members say to each other. It has a port of its own,
// which opens before the stores and closes after them: stores need each other
// while clients are not served yet, and no longer.
func (m *members) servePeers(g *boot.Group, cfg *config, tunnels *tunnel.Server, lasting store.Store) (*raft.Service, error) {
	if m == nil {
		return raft.NewService(nobody), nil
	}
	allow := m.id.Allow
	service := raft.NewService(allow)
	listener, err := cfg.listen("peer", cfg.listenPeer)
	if err != nil {
		return nil, boot.Invalid("--listen-peer: %w", err)
	}
	server := rpc.NewServer(rpc.ServerConfig{
		// Before a message is read.
		Authenticate: func(ctx context.Context, _ string) (context.Context, rpc.Caller, error) {
			return ctx, rpc.Caller{Name: "members", Class: rpc.System}, allow(ctx)
		},
		Untraced: func(string) bool { return true },
		Options:  []grpc.ServerOption{grpc.Creds(credentials.NewTLS(m.id.Server("h2")))},
	})
	service.Register(server)
	m.service.RegisterPeers(server, allow)
	m.stores = wire.NewService(allow)
	m.stores.Serve(storev1.Place_PLACE_LASTING, lasting)
	m.stores.Register(server)
	nodev1.RegisterRelayServiceServer(server, tunnels.Relay(allow))
	g.Go("peers", func(ctx context.Context) error { return server.Serve(ctx, listener) })
	return service, nil
}

package main

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	memberv1 "keelson.dev/proto/keelson/member/v1"
	nodev1 "keelson.dev/proto/keelson/node/v1"
	storev1 "keelson.dev/proto/keelson/store/v1"
	tracev1 "keelson.dev/proto/keelson/trace/v1"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/member"
	"keelson.dev/services/apiserver/internal/peertls"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/etcd"
	"keelson.dev/services/apiserver/internal/store/raft"
	"keelson.dev/services/apiserver/internal/store/wire"
	"keelson.dev/services/apiserver/internal/tracestore"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/rpc"
)

// storeMember is an apiserver that carries the stores together with others.
type storeMember struct {
	cfg  *config
	id   *identity.Source
	peer *peertls.Identity
	book *member.Book
	// seats are the members' etcd peer addresses by name, used until etcd has read its own
	// list.
	seats map[string]string
	// joined is true if others founded the stores.
	joined bool
	// admitted is called once this member has its place.
	admitted func()

	// The rest is set by openLasting.
	etcd    *etcd.Embedded
	service *member.Service
}

// newMember finds the other members: --members lists them, or, before the first start of a
// member that joins, those of --join do.
func newMember(ctx context.Context, g *boot.Group, cfg *config, id *identity.Source) (*storeMember, error) {
	peer, err := cfg.peerTLS(ctx, id)
	if err != nil {
		return nil, err
	}
	m := &storeMember{cfg: cfg, id: id, peer: peer, admitted: func() {}}
	if len(cfg.Peers) > 0 {
		m.book, m.seats = member.NewBook(peer, cfg.Peers), cfg.EtcdPeers
		return m, nil
	}
	m.joined, m.seats = true, map[string]string{}
	seeds := map[string]string{}
	if !etcd.HasData(etcdDir(cfg)) {
		if seeds, err = m.join(ctx, g); err != nil {
			return nil, err
		}
	}
	m.book = member.NewBook(peer, seeds)
	return m, nil
}

// join asks the members to admit this one, and keeps asking until it is admitted. It
// returns the addresses of the other members, by name, and fills seats.
func (m *storeMember) join(ctx context.Context, g *boot.Group) (seeds map[string]string, err error) {
	v := member.Invitation{Endpoints: m.cfg.join, TokenFile: m.cfg.joinTokenFile, Identity: m.id}
	r := &memberv1.JoinRequest{Name: m.cfg.name, PeerAddress: m.cfg.PeerAddress, EtcdAddress: m.cfg.EtcdAddress}
	found, err := v.Ask(ctx, r)
	if err != nil {
		return nil, err
	}
	admitted := make(chan struct{})
	m.admitted = func() { close(admitted) }
	g.Go("asking to join", func(ctx context.Context) error { return keepAsking(ctx, admitted, v, r) })
	seeds = map[string]string{}
	for _, f := range found {
		if f.Name != m.cfg.name {
			seeds[f.Name], m.seats[f.Name] = f.PeerAddress, f.EtcdAddress
		}
	}
	return seeds, nil
}

// askAgain is the interval at which a member that waits to be admitted asks again. An
// admission lasts ten minutes, and the members may be without a quorum for longer.
const askAgain = 3 * time.Minute

// keepAsking asks to join again every askAgain, until admitted is closed or ctx ends.
func keepAsking(ctx context.Context, admitted <-chan struct{}, v member.Invitation, r *memberv1.JoinRequest) error {
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

func (m *storeMember) openLasting(ctx context.Context, g *boot.Group) (store.Store, error) {
	s, err := startEtcd(ctx, g, m.cfg, m.id, &etcd.PeerConfig{
		Listen: m.cfg.etcdListenPeer, Address: m.cfg.EtcdAddress, Service: m.cfg.PeerAddress,
		Identity: m.peer, Members: m.seats,
	})
	if err != nil {
		return nil, err
	}
	m.admitted()
	m.etcd = s
	m.book.Follow(s.Known)
	m.service = member.NewService(member.Config{Name: m.cfg.name, Etcd: s, Store: s, Dial: m.book.Dial})
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
		return errors.New("etcd has ended here: this apiserver is not a member any more (`keel member list` shows the members), or its disk has failed")
	})
	return startReach(g, "etcd", s), nil
}

func (m *storeMember) openTransient(ctx context.Context, g *boot.Group, lasting store.Store, offer offered) (store.Store, error) {
	rc := raft.Config{Members: m.cfg.Peers.names(), Dial: m.book.Dial, Follow: m.etcd, Join: m.joined}
	if m.joined {
		rc.Members = m.etcd.Names()
		if !slices.Contains(rc.Members, m.cfg.name) {
			rc.Members = append(rc.Members, m.cfg.name)
		}
	}
	stores := wire.NewService(m.peer.Allow)
	stores.Serve(storev1.Place_PLACE_LASTING, lasting)
	var err error
	if rc.Service, err = m.servePeers(g, stores, offer); err != nil {
		return nil, err
	}
	s, err := openRaft(ctx, m.cfg, rc)
	if err != nil {
		return nil, err
	}
	quick := startReach(g, "raft", s)
	m.service.Serve(s)
	m.etcd.Coordinate(s)
	stores.Serve(storev1.Place_PLACE_TRANSIENT, quick)
	g.OnStop("raft store", func(context.Context) error { s.Close(); return nil })
	return quick, nil
}

// servePeers serves the other members on a port of its own, which opens before the raft
// store does and closes after it: the stores need each other before clients are served,
// and after they are no longer. It returns the raft store's part of that port.
func (m *storeMember) servePeers(g *boot.Group, stores *wire.Service, offer offered) (*raft.Service, error) {
	allow := m.peer.Allow
	service := raft.NewService(allow)
	listener, err := m.cfg.listen("peer", m.cfg.listenPeer)
	if err != nil {
		return nil, boot.Invalid("--listen-peer: %w", err)
	}
	server := rpc.NewServer(rpc.ServerConfig{
		// Peers are authenticated before a message of theirs is read.
		Authenticate: func(ctx context.Context, _ string) (context.Context, rpc.Caller, error) {
			return ctx, rpc.Caller{Name: "members", Class: rpc.System}, allow(ctx)
		},
		Untraced: func(string) bool { return true },
		Options:  []grpc.ServerOption{grpc.Creds(credentials.NewTLS(m.peer.Server("h2")))},
	})
	service.Register(server)
	m.service.RegisterPeers(server, allow)
	stores.Register(server)
	nodev1.RegisterRelayServiceServer(server, offer.tunnels.Relay(allow))
	tracev1.RegisterPeerServiceServer(server, tracestore.NewPeer(offer.spans, allow))
	g.Go("peers", func(ctx context.Context) error { return server.Serve(ctx, listener) })
	return service, nil
}

func (m *storeMember) peers() []grpc.ClientConnInterface { return m.service.Others() }

func (m *storeMember) serveAPI(_ *boot.Group, r grpc.ServiceRegistrar, rights authz.Authorizer) {
	m.service.RegisterAPI(r, rights)
}

func (m *storeMember) shared() bool { return true }

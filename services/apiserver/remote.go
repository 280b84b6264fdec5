package main

import (
	"context"
	"path/filepath"

	"google.golang.org/grpc"

	storev1 "keelson.dev/proto/keelson/store/v1"
	"keelson.dev/services/apiserver/internal/authz"
	"keelson.dev/services/apiserver/internal/member"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/wire"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
)

// remote is an apiserver that is no member (--member=false): it uses the members' stores.
type remote struct {
	memberless // nothing has to depart

	book    *member.Book
	members *wire.Members
}

// newRemote asks the apiservers of --join for the members.
func newRemote(ctx context.Context, g *boot.Group, cfg *config, id *identity.Source) (*remote, error) {
	directory, err := member.OpenDirectory(ctx, filepath.Join(cfg.dataDir, "members.json"),
		member.Invitation{Endpoints: cfg.join, TokenFile: cfg.joinTokenFile, Identity: id})
	if err != nil {
		return nil, err
	}
	peer, err := cfg.peerTLS(ctx, id)
	if err != nil {
		return nil, err
	}
	book := member.NewBook(peer, nil)
	book.Follow(directory.Known)
	m := &remote{book: book, members: &wire.Members{Names: directory.Names, Dial: book.Dial}}
	g.OnStop("connections to members", func(context.Context) error { m.members.Close(); return nil })
	g.Go("address book", book.Run)
	g.Go("directory of members", func(ctx context.Context) error { return directory.Run(ctx, book.Dial) })
	return m, nil
}

func (m *remote) openLasting(_ context.Context, g *boot.Group) (store.Store, error) {
	return m.open(g, "etcd", storev1.Place_PLACE_LASTING), nil
}

func (m *remote) openTransient(_ context.Context, g *boot.Group, _ store.Store, _ offered) (store.Store, error) {
	return m.open(g, "raft", storev1.Place_PLACE_TRANSIENT), nil
}

// open opens one of the members' stores; name is that of the check of its reach.
func (m *remote) open(g *boot.Group, name string, place storev1.Place) store.Store {
	c := wire.NewClient(m.members, place)
	g.OnStop("store of the members", func(context.Context) error { c.Close(); return nil })
	return startReach(g, name, c)
}

func (m *remote) peers() []grpc.ClientConnInterface { return m.members.Conns() }

func (m *remote) serveAPI(g *boot.Group, r grpc.ServiceRegistrar, rights authz.Authorizer) {
	forward := member.NewForward(m.members.Names, m.book.Dial, rights)
	forward.Register(r)
	g.OnStop("calls to members", func(context.Context) error { forward.Close(); return nil })
}

func (m *remote) shared() bool { return true }

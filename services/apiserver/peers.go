package main

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"slices"
	"strings"

	"google.golang.org/grpc"

	"keelson.dev/services/apiserver/internal/store/raft"
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

// startPeers serves what the members say to each other. It has a port of its own,
// which opens before the stores and closes after them: stores need each other
// while clients are not served yet, and no longer.
func startPeers(g *boot.Group, cfg *config, id *identity.Source) (*raft.Service, error) {
	service := raft.NewService(raft.Certificates(func() *x509.CertPool { return id.Current().Roots }, id.Name()))
	if len(cfg.Peers) == 0 {
		return service, nil
	}
	listener, err := net.Listen("tcp", cfg.listenPeer)
	if err != nil {
		return nil, boot.Invalid("--listen-peer: %w", err)
	}
	server := rpc.NewServer(rpc.ServerConfig{
		Identity: id, RequireClientCert: true,
		Untraced: func(string) bool { return true },
	})
	service.Register(server.Server)
	g.Go("peers", func(ctx context.Context) error { return server.Serve(ctx, listener) })
	return service, nil
}

// dial makes the connection to another member.
func (p peers) dial(id *identity.Source) func(string) (grpc.ClientConnInterface, error) {
	return func(name string) (grpc.ClientConnInterface, error) {
		addr, ok := p[name]
		if !ok {
			return nil, fmt.Errorf("--members does not say where %s is", name)
		}
		return rpc.Dial(id, []string{addr}, "keelson-apiserver")
	}
}

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"keelson.dev/services/apiserver/internal/peertls"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity"
)

// peers are the addresses, host:port, at which the members reach each other, by name.
type peers map[string]string

// parsePeers parses a list of name=host:port, which must contain self unless it is empty.
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

// names returns the names of all members, sorted.
func (p peers) names() []string {
	out := make([]string, 0, len(p))
	for name := range p {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// peerTLS loads the certificates by which this apiserver and its peers authenticate each
// other.
func (c *config) peerTLS(ctx context.Context, id *identity.Source) (*peertls.Identity, error) {
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
		slog.WarnContext(ctx, "apiservers authenticate each other by the cluster's CA, as --identity holds no certificates for peers; `keel up` and `keel pki` write them", "identity", c.Identity)
	}
	return p, nil
}

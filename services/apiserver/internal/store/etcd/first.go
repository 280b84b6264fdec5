package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	etcdtls "go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.etcd.io/etcd/server/v3/storage/datadir"
	"go.etcd.io/etcd/server/v3/storage/wal"

	"keelson.dev/services/internal/connlimit"
)

// Identity provides the TLS configurations of connections between members, for application
// protocols. They verify the other side.
type Identity interface {
	Client(protocols ...string) *tls.Config
	Server(protocols ...string) *tls.Config
}

// PeerConfig configures one of several members.
type PeerConfig struct {
	// Listen is the host:port at which the other members connect. Address, if set, is where
	// they reach it. Both may change between starts.
	Listen, Address string
	// Service is the address of the member's other services. This package only announces it to
	// the others (Embedded.Known).
	Service string
	// Identity is presented to the other members and verifies them.
	Identity Identity
	// Members are the names and addresses of members. A member without data whose own name is
	// among them founds the cluster with them, if none of them has data; otherwise it waits
	// until it is added (Embedded.Add, Embedded.Replace). A member with data uses only the
	// addresses.
	Members map[string]string
	// Sockets is the directory that becomes the process's working directory, because etcd finds
	// its peers by names of sockets in it; default "peers" in Dir. All members in a process
	// share one directory. Relative paths must be made absolute before.
	Sockets string
	// Election is how long a member waits without hearing from its leader before it stands for
	// election, and Heartbeat the interval of a leader's heartbeats; defaults 500 ms and 50 ms.
	// They must be the same on all members.
	Election, Heartbeat time.Duration

	askTime time.Duration // shortened by tests; zero means askTime
}

// HasData reports whether the directory contains a member's data. A member with data does not
// join another cluster.
func HasData(dir string) bool { return hasLog(dir) || exists(filepath.Join(dir, recovered)) }

// hasLog reports whether the directory contains a member's log.
func hasLog(dir string) bool { return wal.Exist(datadir.ToWALDir(dir)) }

// startPeers opens the member's listener for the others.
func (c *EmbeddedConfig) startPeers() (*peers, error) {
	pc := c.Peers
	switch {
	case !memberName.MatchString(c.Name):
		return nil, fmt.Errorf("etcd's member: %q is not a valid name", c.Name)
	case pc.Identity == nil:
		return nil, errors.New("etcd's members require an identity")
	case pc.Listen == "":
		return nil, errors.New("etcd's members require an address to listen on")
	}
	dir := pc.Sockets
	if dir == "" {
		dir = filepath.Join(c.Dir, "peers")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	listen := net.ListenConfig{KeepAliveConfig: keepAlive, Control: func(network, address string, c syscall.RawConn) error {
		return endUnanswered(context.Background(), network, address, c)
	}}
	tcp, err := listen.Listen(context.Background(), "tcp", pc.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for etcd's peers: %w", err)
	}
	l := connlimit.Wrap(tcp, peerLimits)
	address := pc.Address
	if address == "" {
		address = l.Addr().String()
	}
	cs, err := openCards(c.Dir, c.Name, address, pc.Service, pc.Members, hasLog(c.Dir))
	if err == nil {
		err = useSockets(dir)
	}
	if err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("etcd's member %s: %w", c.Name, err)
	}
	return newPeers(cs, c.Log, pc, l), nil
}

// founders waits until it is clear how this member starts: it returns the seats with which it
// founds the cluster, or, if it does not, those that it asks to be added.
//
// A member without data that founded a cluster although there is one would forget its votes.
// Therefore all founders must be reachable, and must have announced that they have no data or
// are founding this very cluster.
func (p *peers) founders(ctx context.Context, names map[string]string) (found, ask []string, err error) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	own := p.own()
	_, listed := names[nameOf(own.Seat)]
	for {
		if found = p.own().Founders; len(found) > 0 {
			return found, nil, nil
		}
		found, ask = []string{own.Seat}, nil
		var claims [][]string
		for name := range names {
			t, ok := p.newest(name)
			switch {
			case name == nameOf(own.Seat):
			case !ok, !p.survives(t):
			case !t.Fresh, len(t.Founders) > 0:
				found = append(found, t.Seat)
				claims = append(claims, t.Founders)
				if !t.Fresh {
					ask = append(ask, t.Seat)
				}
			default:
				found = append(found, t.Seat)
			}
		}
		slices.Sort(found)
		ours := func(claim []string) bool { return slices.Equal(claim, found) }
		knowsUs := func(claim []string) bool { return slices.Contains(claim, own.Seat) }
		switch {
		case len(ask) > 0 && !slices.ContainsFunc(claims, knowsUs), !listed && len(ask) > 0:
			return nil, ask, nil
		case listed && len(found) == len(names) && !slices.ContainsFunc(claims, func(c []string) bool { return !ours(c) }):
			return found, nil, p.found(found)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("waiting for the members %s, of which %s are reachable: %w", join(names), strings.Join(found, ", "), ctx.Err())
		}
	}
}

func join(names map[string]string) string {
	var out []string
	for n := range names {
		out = append(out, n)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// admitted waits until this member's seat is a member of the cluster, and returns the seats of
// all members.
func (p *peers) admitted(ctx context.Context, ask []string) ([]string, error) {
	rt, err := rafthttp.NewRoundTripper(etcdtls.TLSInfo{}, dialTime)
	if err != nil {
		return nil, err
	}
	var urls []string
	for _, seat := range ask {
		if err := p.openOutlet(seat); err != nil {
			return nil, err
		}
		urls = append(urls, urlPrefix+seat)
	}
	p.log.InfoContext(ctx, "this member of etcd has an empty disk and waits until the leader adds it", "member", p.seat())
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if cl, err := etcdserver.GetClusterFromRemotePeers(zap.NewNop(), urls, rt); err == nil {
			var seats []string
			for _, m := range cl.Members() {
				seats = append(seats, seatOfURLs(m.PeerURLs))
			}
			if slices.Contains(seats, p.seat()) {
				return seats, nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("member %s was not added by the others: %w", p.seat(), ctx.Err())
		}
	}
}

// seatOfURLs returns the seat in a member's peer URLs, or "".
func seatOfURLs(urls []string) string {
	for _, u := range urls {
		if seat, ok := strings.CutPrefix(u, urlPrefix); ok {
			return seat
		}
	}
	return ""
}

// begin decides how a member without data starts, and configures etcd accordingly.
func (p *peers) begin(ctx context.Context, names map[string]string, cfg *embed.Config) error {
	seats, ask, err := p.founders(ctx, names)
	if err != nil {
		return err
	}
	cfg.ClusterState = embed.ClusterStateFlagNew
	if seats == nil {
		cfg.ClusterState = embed.ClusterStateFlagExisting
		if seats, err = p.admitted(ctx, ask); err != nil {
			return err
		}
	}
	var initial []string
	for _, seat := range seats {
		if seat != p.seat() {
			if err := p.openOutlet(seat); err != nil {
				return err
			}
		}
		// All founders must use the same names. For a member that joins, the others' names do
		// not matter.
		name := nameOf(seat)
		if seat != p.seat() && name == cfg.Name {
			name = seat
		}
		initial = append(initial, name+"="+urlPrefix+seat)
	}
	cfg.InitialCluster = strings.Join(initial, ",")
	return nil
}

package etcd

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"keelson.dev/services/internal/connlimit"
)

// Peers connect over mutual TLS. The application protocol names the purpose: to exchange
// cards, or to reach the etcd of one seat. An address that another member has taken over does
// not answer for the seat that had it before, so that no member is mistaken for another.
const (
	protocolCards = "keelson-etcd-cards"
	protocolPeer  = "keelson-etcd-peer/"
)

// Time limits of setting up one connection.
const (
	dialTime     = time.Second
	shakeTime    = 2 * time.Second
	exchangeTime = 3 * time.Second
)

// peerLimits bound the incoming connections. Few may be open before their handshake is
// complete; the others belong to members, each of which has about a dozen.
var peerLimits = connlimit.Limits{Name: "etcd-peer", Total: 1024, PerAddress: 256, Unknown: 64, UnknownPerAddress: 32}

// keepAlive ends a connection to a host that is gone, even if the connection is idle.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 3}

// unanswered is how long sent data may remain unacknowledged.
const unanswered = 5 * time.Second

// sockets is the directory of the sockets through which etcd dials its peers. It is the working
// directory of the process while members run in it, for want of another way: etcd passes the
// host of a peer's URL to net.Dial as the name of a unix socket, and a host cannot contain a
// slash. Files that the apiserver opens later are therefore named by absolute paths. Loopback
// ports instead of sockets would be open to every user of the machine.
var sockets struct {
	sync.Mutex
	dir, before string
	users       int
	outlets     map[string]*outlet
}

// useSockets makes dir the working directory.
func useSockets(dir string) error {
	s := &sockets
	s.Lock()
	defer s.Unlock()
	if s.users > 0 {
		if s.dir != dir {
			return fmt.Errorf("sockets of etcd's peers: this process has them in %s already", s.dir)
		}
		s.users++
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	removeSockets(dir)
	before, err := os.Getwd()
	if err != nil {
		return err
	}
	if err := os.Chdir(dir); err != nil {
		return err
	}
	s.dir, s.before, s.users, s.outlets = dir, before, 1, map[string]*outlet{}
	return nil
}

func leaveSockets() {
	s := &sockets
	s.Lock()
	defer s.Unlock()
	if s.users--; s.users == 0 {
		_ = os.Chdir(s.before)
	}
}

// outlet is the socket at which etcd finds the peer in a seat. The members of a process share
// it.
type outlet struct {
	listener net.Listener
	users    []*peers
	done     chan struct{}
}

// openOutlet creates the seat's socket. A member that is closing opens none, because nothing
// would close it again.
func (p *peers) openOutlet(seat string) error {
	s := &sockets
	s.Lock()
	defer s.Unlock()
	if p.ctx.Err() != nil {
		return nil
	}
	o := s.outlets[seat]
	if o == nil {
		path := seat + ":80" // http's port: the URL has none
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		l, err := net.Listen("unix", path)
		if err != nil {
			return fmt.Errorf("socket to peer %s: %w", seat, err)
		}
		o = &outlet{listener: l, done: make(chan struct{})}
		s.outlets[seat] = o
		go o.serve(seat)
	}
	if !slices.Contains(o.users, p) {
		o.users = append(o.users, p)
	}
	return nil
}

// closeOutlets gives up this member's share in all sockets, and closes those that no other
// member uses.
func (p *peers) closeOutlets() {
	s := &sockets
	s.Lock()
	var ended []*outlet
	for seat, o := range s.outlets {
		o.users = slices.DeleteFunc(o.users, func(u *peers) bool { return u == p })
		if len(o.users) == 0 {
			_ = o.listener.Close()
			delete(s.outlets, seat)
			ended = append(ended, o)
		}
	}
	s.Unlock()
	for _, o := range ended {
		<-o.done
	}
}

func (o *outlet) serve(seat string) {
	defer close(o.done)
	for {
		c, err := o.listener.Accept()
		if err != nil {
			return
		}
		sockets.Lock()
		var p *peers
		if len(o.users) > 0 {
			p = o.users[0]
		}
		sockets.Unlock()
		if p == nil || !p.run(func() { p.out(seat, c) }) {
			_ = c.Close()
		}
	}
}

// peers connects one member with the others.
type peers struct {
	*cards
	log      *slog.Logger
	id       Identity
	askTime  time.Duration
	listener net.Listener
	local    string // the socket where this member's etcd listens
	// serving is true once etcd answers there. Until then connections are refused, so that a
	// member which asks whether a cluster exists gets its answer at once.
	serving atomic.Bool

	ctx  context.Context
	stop context.CancelFunc
	mu   sync.Mutex // guards the wait group against adding after stop
	wg   sync.WaitGroup
	// live are the open connections.
	live map[net.Conn]bool
}

func newPeers(c *cards, log *slog.Logger, pc *PeerConfig, l net.Listener) *peers {
	p := &peers{cards: c, log: log, id: pc.Identity, askTime: cmp.Or(pc.askTime, askTime), listener: l, live: map[net.Conn]bool{}}
	p.local = c.seat() + ".in"
	p.ctx, p.stop = context.WithCancel(context.Background())
	p.run(p.accept)
	p.run(p.exchanges)
	return p
}

// run runs f in a goroutine that close waits for. It returns false, without running f, if the
// member is closing.
func (p *peers) run(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return false
	}
	p.wg.Go(f)
	return true
}

func (p *peers) close() {
	p.mu.Lock()
	p.stop()
	_ = p.listener.Close()
	for c := range p.live {
		_ = c.Close()
	}
	p.mu.Unlock()
	p.closeOutlets()
	p.wg.Wait()
}

// track records a connection so that close ends it. It returns false if the member is closing.
func (p *peers) track(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil {
		return false
	}
	p.live[c] = true
	return true
}

func (p *peers) untrack(c net.Conn) {
	p.mu.Lock()
	delete(p.live, c)
	p.mu.Unlock()
	_ = c.Close()
}

// out forwards one connection of this process's etcd to the peer in a seat.
func (p *peers) out(seat string, c net.Conn) {
	if !p.track(c) {
		_ = c.Close()
		return
	}
	defer p.untrack(c)
	for _, address := range p.addresses(seat) {
		remote, err := p.dial(address, protocolPeer+seat)
		if err != nil {
			p.log.DebugContext(p.ctx, "cannot reach peer", "peer", seat, "address", address, "error", err)
			continue
		}
		p.pipe(c, remote)
		return
	}
}

// pipe copies in both directions until one side ends.
func (p *peers) pipe(a, b net.Conn) {
	if !p.track(b) {
		_ = b.Close()
		return
	}
	defer p.untrack(b)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(a, b)
		_ = a.Close()
		_ = b.Close()
	}()
	_, _ = io.Copy(b, a)
	_ = a.Close()
	_ = b.Close()
	<-done
}

// dial connects to another member for a purpose.
func (p *peers) dial(address, protocol string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTime, KeepAliveConfig: keepAlive, ControlContext: endUnanswered}
	raw, err := d.DialContext(p.ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := tls.Client(raw, p.id.Client(protocol))
	ctx, cancel := context.WithTimeout(p.ctx, shakeTime)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	if got := c.ConnectionState().NegotiatedProtocol; got != protocol {
		_ = raw.Close()
		return nil, fmt.Errorf("%s does not speak %s", address, protocol)
	}
	return c, nil
}

// answers reports whether the member in a seat can be reached.
func (p *peers) answers(seat string) bool {
	if seat == p.seat() {
		return true
	}
	for _, address := range p.addresses(seat) {
		if c, err := p.dial(address, protocolPeer+seat); err == nil {
			_ = c.Close()
			return true
		}
	}
	return false
}

// accept serves the other members.
func (p *peers) accept() {
	for {
		raw, err := p.listener.Accept()
		if err != nil {
			if p.ctx.Err() != nil {
				return
			}
			p.log.WarnContext(p.ctx, "cannot accept a connection of etcd's peers", "error", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-p.ctx.Done():
			}
			continue
		}
		if !p.run(func() { p.in(raw) }) {
			_ = raw.Close()
		}
	}
}

func (p *peers) in(raw net.Conn) {
	if !p.track(raw) {
		_ = raw.Close()
		return
	}
	defer p.untrack(raw)
	mine := protocolPeer + p.seat()
	c := tls.Server(raw, p.id.Server(mine, protocolCards))
	ctx, cancel := context.WithTimeout(p.ctx, shakeTime)
	err := c.HandshakeContext(ctx)
	cancel()
	if err != nil {
		p.log.DebugContext(ctx, "refused a connection of etcd's peers", "from", raw.RemoteAddr().String(), "error", err)
		return
	}
	if limited, ok := raw.(*connlimit.Conn); ok {
		limited.Know()
	}
	switch c.ConnectionState().NegotiatedProtocol {
	case protocolCards:
		_ = c.SetDeadline(time.Now().Add(exchangeTime))
		if p.take(c) == nil {
			_ = p.tell(c)
		}
	case mine:
		if !p.serving.Load() {
			return
		}
		local, err := net.Dial("unix", p.local)
		if err != nil {
			p.log.WarnContext(ctx, "etcd does not take its peers' connections", "error", err)
			return
		}
		p.pipe(c, local)
	}
}

func (p *peers) tell(w io.Writer) error {
	return json.NewEncoder(w).Encode(p.all())
}

func (p *peers) take(r io.Reader) error {
	var received []card
	if err := json.NewDecoder(io.LimitReader(r, maxCards*maxCardSize)).Decode(&received); err != nil {
		return err
	}
	return p.merge(received)
}

// Pauses between two rounds of exchanges: while a member is new, and otherwise.
const (
	exchangeSoon = 200 * time.Millisecond
	exchangeRare = 2 * time.Second
	newFor       = 10 * time.Second
)

// exchanges sends the cards that this member has to the others, and receives theirs.
func (p *peers) exchanges() {
	wait := time.NewTimer(0)
	defer wait.Stop()
	var sent int64
	var changed time.Time
	for {
		select {
		case <-wait.C:
		case <-p.ctx.Done():
			return
		}
		if n := p.own().Number; n != sent {
			sent, changed = n, time.Now()
		}
		var wg sync.WaitGroup
		for _, address := range p.everywhere() {
			wg.Go(func() {
				if err := p.exchange(address); err != nil {
					p.log.DebugContext(p.ctx, "cannot exchange addresses with a peer", "address", address, "error", err)
				}
			})
		}
		wg.Wait()
		if p.own().Fresh || time.Since(changed) < newFor {
			wait.Reset(exchangeSoon)
		} else {
			wait.Reset(exchangeRare)
		}
	}
}

func (p *peers) exchange(address string) error {
	c, err := p.dial(address, protocolCards)
	if err != nil {
		return err
	}
	if !p.track(c) {
		_ = c.Close()
		return p.ctx.Err()
	}
	defer p.untrack(c)
	_ = c.SetDeadline(time.Now().Add(exchangeTime))
	if err := p.tell(c); err != nil {
		return err
	}
	return p.take(c)
}

// removeSockets removes the sockets that a killed process left in the directory.
func removeSockets(dir string) {
	for _, pattern := range []string{seatPrefix + "*:80", seatPrefix + "*.in"} {
		names, _ := filepath.Glob(filepath.Join(dir, pattern))
		for _, n := range names {
			_ = os.Remove(n)
		}
	}
}

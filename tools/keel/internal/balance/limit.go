package balance

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// limits of one client address (IPv6: one /64). The addresses of this machine that
// stand for all its programs, 127.0.0.1 and ::1, have those of the balancer. Behind a
// balancer every client has the balancer's address, so the apiservers cannot know them
// apart.
type limits struct {
	// connections at once: clients behind one NAT.
	connections int
	// unanswered are those whose backend has said nothing yet: a TLS handshake that has
	// not begun.
	unanswered int
	// rate is how many connections a second an address may open, burst how many at once.
	rate  rate.Limit
	burst int
	// hello is how long a connection may stay unanswered.
	hello time.Duration
}

var defaultLimits = limits{connections: 1024, unanswered: 32, rate: 50, burst: 200, hello: 10 * time.Second}

const (
	// maxClients is from when on addresses without connections are forgotten.
	maxClients = 4096
	// sweepEvery bounds how often they are.
	sweepEvery = time.Second
	// logEvery is how often refusals are logged.
	logEvery = 10 * time.Second
)

// limiter counts connections by client address.
type limiter struct {
	limits
	now func() time.Time

	mu       sync.Mutex
	clients  map[netip.Addr]*clientCount
	refusals int
	logged   time.Time
	swept    time.Time
}

type clientCount struct {
	connections, unanswered int
	opens                   *rate.Limiter
}

func newLimiter(l limits) *limiter {
	return &limiter{limits: l, now: time.Now, clients: map[netip.Addr]*clientCount{}}
}

// enter counts a connection that is not answered yet; false refuses it.
func (l *limiter) enter(ip netip.Addr) bool {
	if local(ip) {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	c := l.clients[ip]
	if c == nil {
		if len(l.clients) >= maxClients && now.Sub(l.swept) >= sweepEvery {
			l.swept = now
			l.forget(now)
		}
		c = &clientCount{opens: rate.NewLimiter(l.rate, l.burst)}
		l.clients[ip] = c
	}
	if c.connections >= l.connections || c.unanswered >= l.unanswered || !c.opens.AllowN(now, 1) {
		l.refuse(ip, now)
		return false
	}
	c.connections++
	c.unanswered++
	return true
}

// answered counts a connection as answered.
func (l *limiter) answered(ip netip.Addr) { l.change(ip, 0, -1) }

// leave counts a connection no longer.
func (l *limiter) leave(ip netip.Addr, answered bool) {
	if answered {
		l.change(ip, -1, 0)
	} else {
		l.change(ip, -1, -1)
	}
}

func (l *limiter) change(ip netip.Addr, connections, unanswered int) {
	if local(ip) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.clients[ip]
	c.connections += connections
	c.unanswered += unanswered
}

// forget drops addresses about which nothing is to be remembered.
func (l *limiter) forget(now time.Time) {
	for ip, c := range l.clients {
		if c.connections == 0 && c.opens.TokensAt(now) >= float64(l.burst) {
			delete(l.clients, ip)
		}
	}
}

// refuse logs refusals from time to time.
func (l *limiter) refuse(ip netip.Addr, now time.Time) {
	l.refusals++
	if now.Sub(l.logged) < logEvery {
		return
	}
	slog.WarnContext(context.Background(), "connections refused: too many from one address", "count", l.refusals, "last_address", ip.String())
	l.refusals, l.logged = 0, now
}

// clientAddress is what a client is counted by.
func clientAddress(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.IPv6Loopback()
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if ip.Is6() && !ip.IsLoopback() {
		prefix, _ := ip.Prefix(64) // never fails for IPv6
		return prefix.Addr()
	}
	return ip
}

// local reports whether an address is a usual loopback address.
func local(ip netip.Addr) bool {
	return ip == netip.IPv6Loopback() || ip == netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

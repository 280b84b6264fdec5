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

// limits are the limits per client address (IPv6: per /64). The usual loopback addresses,
// 127.0.0.1 and ::1, which all local programs share, are exempt from them; only the balancer's
// own limits apply. The apiservers cannot apply limits per client, because to them all clients
// have the balancer's address.
type limits struct {
	// connections is the number of open connections. It is large, because several clients may
	// share an address (NAT).
	connections int
	// unanswered is the number of open connections on which the backend has not sent anything
	// yet, so that no TLS handshake is in progress.
	unanswered int
	// rate is the number of connections per second that an address may open, and burst how many
	// at once.
	rate  rate.Limit
	burst int
	// hello bounds how long a connection may stay unanswered.
	hello time.Duration
}

var defaultLimits = limits{connections: 1024, unanswered: 32, rate: 50, burst: 200, hello: 10 * time.Second}

const (
	// maxClients is the number of addresses from which on those without connections are
	// forgotten.
	maxClients = 4096
	// sweepEvery is the shortest interval between two such sweeps.
	sweepEvery = time.Second
	// logEvery is the shortest interval between log messages about refusals.
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

// enter counts a connection that is not answered yet. It returns false if the connection must
// be refused.
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

// answered records that a connection has been answered.
func (l *limiter) answered(ip netip.Addr) { l.change(ip, 0, -1) }

// leave records that a connection has been closed.
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

// forget drops addresses without connections whose rate limiter is full.
func (l *limiter) forget(now time.Time) {
	for ip, c := range l.clients {
		if c.connections == 0 && c.opens.TokensAt(now) >= float64(l.burst) {
			delete(l.clients, ip)
		}
	}
}

// refuse counts a refusal, and logs the number of refusals from time to time.
func (l *limiter) refuse(ip netip.Addr, now time.Time) {
	l.refusals++
	if now.Sub(l.logged) < logEvery {
		return
	}
	slog.WarnContext(context.Background(), "connections refused: too many from one address", "count", l.refusals, "last_address", ip.String())
	l.refusals, l.logged = 0, now
}

// clientAddress returns the address that a client's connections are counted under.
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

// Package connlimit bounds the connections of a listener: in total, per client address, and those
// without an authenticated request.
//
// A connection is unknown until a request on it is authenticated ([Conn.Know]). Unknown connections,
// which include the TLS handshakes in progress, have few slots. When these are full, a connection of
// the client address that has most of them is closed to make room for the next one, or else one that
// has been unknown for a second, so that no client can occupy the slots.
//
// It must never wait for a client, and a refusal must cost little: the connection is
// closed before anything is read.
package connlimit

import (
	"container/list"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Limits of a listener; zero values mean the defaults.
type Limits struct {
	// Name is the listener's name in logs.
	Name string
	// Total bounds all connections. Default 16,384.
	Total int
	// PerAddress bounds the connections of one client address (IPv6: one /64). Default 1,024,
	// which allows for clients behind one NAT. For near addresses the bound is Total.
	PerAddress int
	// Unknown bounds the unknown connections. Default 128; each needs about 100 KiB.
	Unknown int
	// UnknownPerAddress bounds the unknown connections of one client address. Default 64. For
	// near addresses the bound is Unknown.
	UnknownPerAddress int
	// Rate is how many connections per second one client address may open, and Burst how many at
	// once. Defaults 50 and 200: a handshake takes about half a millisecond of CPU, so one
	// address uses up to 2.5 % of a core. Near addresses have 20 times as much.
	Rate  float64
	Burst int
	// Near reports whether an address represents many clients, as a balancer's does. Loopback and
	// this machine's own addresses are always near.
	Near func(netip.Addr) bool
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

const (
	// grace is how long an unknown connection keeps its slot while others wait.
	grace = time.Second
	// nearGrace is the same for a connection of a near address while others of that address wait,
	// which may belong to other clients. It is short enough to serve all connections that may
	// be opened in a second.
	nearGrace = 100 * time.Millisecond
	// maxRefused is the number of refused requests after which an unknown connection is closed.
	maxRefused = 16
	// requestRate (per second) and requestBurst bound the requests of an unknown connection. They
	// allow for health checks and discovery.
	requestRate, requestBurst = 20, 100
	// nearFactor multiplies Rate and Burst for near addresses.
	nearFactor = 20
	// maxAddresses is the number of addresses from which on those without connections are
	// forgotten.
	maxAddresses = 4096
	// sweepEvery bounds how often that happens, so that a client with many addresses cannot
	// cause a scan of all addresses for every connection.
	sweepEvery = time.Second
	// logEvery is the interval at which refusals are logged.
	logEvery = 10 * time.Second
)

// Listener is a listener that enforces Limits.
type Listener struct {
	net.Listener
	limits Limits

	mu        sync.Mutex
	total     int
	unknown   list.List // of *Conn, oldest first
	addresses map[netip.Addr]*address
	swept     time.Time
	freed     chan struct{} // has a value when a slot may be free
	closed    chan struct{}
	once      sync.Once

	refused  atomic.Int64
	lastLog  atomic.Int64
	refusals atomic.Int64 // since the last log
}

// address is the state of a client address.
type address struct {
	conns, unknown int
	near           bool
	opens          *rate.Limiter
}

// Wrap limits the connections of l.
func Wrap(l net.Listener, limits Limits) *Listener {
	or := func(v *int, other int) {
		if *v == 0 {
			*v = other
		}
	}
	or(&limits.Total, 16384)
	or(&limits.PerAddress, 1024)
	or(&limits.Unknown, 128)
	or(&limits.UnknownPerAddress, 64)
	if limits.Rate == 0 {
		limits.Rate, limits.Burst = 50, 200
	}
	if limits.Now == nil {
		limits.Now = time.Now
	}
	return &Listener{
		Listener: l, limits: limits, addresses: map[netip.Addr]*address{},
		freed: make(chan struct{}, 1), closed: make(chan struct{}),
	}
}

// Accept returns the next connection that is within the limits.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c, why := l.admit(raw)
		if c != nil {
			return c, nil
		}
		_ = raw.Close()
		l.refuse(why, raw.RemoteAddr())
	}
}

// Close closes the listener, but not its connections.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// Refused returns how many connections have been refused.
func (l *Listener) Refused() int64 { return l.refused.Load() }

// Unknown returns the number of unknown connections.
func (l *Listener) Unknown() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unknown.Len()
}

// admit accepts a connection, or returns why it is refused. While all slots are taken by young
// unknown connections it waits: the kernel queues further connections.
func (l *Listener) admit(raw net.Conn) (c *Conn, why string) {
	ip := ClientAddress(raw.RemoteAddr())
	own := ip == ClientAddress(raw.LocalAddr())
	for counted := false; ; counted = true {
		l.mu.Lock()
		now := l.limits.Now()
		a := l.address(ip, own, now)
		if !counted && !a.opens.AllowN(now, 1) {
			l.mu.Unlock()
			return nil, "the address connects too often"
		}
		if perAddress := l.orAll(a, l.limits.PerAddress, l.limits.Total); l.total >= l.limits.Total || a.conns >= perAddress {
			l.mu.Unlock()
			return nil, "too many connections"
		}
		var evict *Conn
		var wait time.Duration
		switch {
		case a.unknown >= l.orAll(a, l.limits.UnknownPerAddress, l.limits.Unknown):
			evict = l.oldest(ip)
			if a.near {
				wait = nearGrace - now.Sub(evict.since)
			}
		case l.unknown.Len() >= l.limits.Unknown:
			evict, wait = l.victim(a, now)
		}
		if wait <= 0 {
			if evict != nil {
				l.forget(evict)
			}
			c = &Conn{Conn: raw, listener: l, ip: ip, since: now, asks: rate.NewLimiter(requestRate, requestBurst)}
			c.local = localAddr{raw.LocalAddr(), c}
			c.slot = l.unknown.PushBack(c)
			a.conns, a.unknown, l.total = a.conns+1, a.unknown+1, l.total+1
			l.mu.Unlock()
			if evict != nil {
				_ = evict.Conn.Close()
				l.refuse("not authenticated while others wait", evict.RemoteAddr())
			}
			return c, ""
		}
		l.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-l.freed:
		case <-l.closed:
			timer.Stop()
			return nil, "the listener is closed"
		}
		timer.Stop()
	}
}

// orAll returns all for a near address, and bound for others.
func (l *Listener) orAll(a *address, bound, all int) int {
	if a.near {
		return all
	}
	return bound
}

// address returns the entry of a client address, and adds it if necessary; own is true for the
// server's own address. It determines each time whether the address is near, because the addresses
// of balancers may change.
func (l *Listener) address(ip netip.Addr, own bool, now time.Time) *address {
	near := own || ip == netip.IPv6Loopback() || ip == netip.AddrFrom4([4]byte{127, 0, 0, 1}) ||
		l.limits.Near != nil && l.limits.Near(ip)
	perSecond, burst := rate.Limit(l.limits.Rate), l.limits.Burst
	if near {
		perSecond, burst = perSecond*nearFactor, burst*nearFactor
	}
	if a := l.addresses[ip]; a != nil {
		if a.near != near {
			a.near = near
			a.opens.SetLimitAt(now, perSecond)
			a.opens.SetBurstAt(now, burst)
		}
		return a
	}
	if len(l.addresses) >= maxAddresses && now.Sub(l.swept) >= sweepEvery {
		l.swept = now
		for other, a := range l.addresses {
			if a.conns == 0 && a.opens.TokensAt(now) >= float64(a.opens.Burst()) {
				delete(l.addresses, other)
			}
		}
	}
	a := &address{near: near, opens: rate.NewLimiter(perSecond, burst)}
	l.addresses[ip] = a
	return a
}

// victim returns the unknown connection to close for a new one of address a, and how long to wait
// before that. The address with the most unknown connections loses its oldest at once, so that no
// address can make others wait. For near addresses, which represent many clients, it is nearGrace;
// and if no address has two, the oldest of all is closed after grace.
func (l *Listener) victim(a *address, now time.Time) (evict *Conn, wait time.Duration) {
	var far, near *Conn // the oldest of the far and of the near address with most
	mostFar, mostNear := 1, 1
	for e := l.unknown.Front(); e != nil; e = e.Next() {
		c := e.Value.(*Conn)
		holder := l.addresses[c.ip]
		n := holder.unknown
		if holder == a {
			n++
		}
		switch {
		case holder.near && n > mostNear:
			mostNear, near = n, c
		case !holder.near && n > mostFar:
			mostFar, far = n, c
		}
	}
	switch {
	case far != nil && (mostFar >= mostNear || l.addresses[far.ip] == a):
		return far, 0
	case near != nil:
		return near, nearGrace - now.Sub(near.since)
	}
	evict = l.oldest(netip.Addr{})
	return evict, grace - now.Sub(evict.since)
}

// oldest returns the oldest unknown connection of an address, or of all addresses.
func (l *Listener) oldest(ip netip.Addr) *Conn {
	for e := l.unknown.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*Conn); !ip.IsValid() || c.ip == ip {
			return c
		}
	}
	return nil
}

// know removes a connection from the unknown ones.
func (l *Listener) know(c *Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.slot == nil {
		return
	}
	l.unknown.Remove(c.slot)
	c.slot = nil
	l.addresses[c.ip].unknown--
	l.free()
}

// forget stops counting a connection.
func (l *Listener) forget(c *Conn) {
	if c.gone {
		return
	}
	c.gone = true
	a := l.addresses[c.ip]
	if c.slot != nil {
		l.unknown.Remove(c.slot)
		c.slot = nil
		a.unknown--
	}
	a.conns--
	l.total--
	l.free()
}

func (l *Listener) free() {
	select {
	case l.freed <- struct{}{}:
	default:
	}
}

// refuse counts a refusal, and logs the number of refusals every logEvery.
func (l *Listener) refuse(why string, from net.Addr) {
	l.refused.Add(1)
	n := l.refusals.Add(1)
	now := l.limits.Now().UnixNano()
	last := l.lastLog.Load()
	if now-last < int64(logEvery) || !l.lastLog.CompareAndSwap(last, now) {
		return
	}
	l.refusals.Add(-n)
	slog.WarnContext(context.Background(), "connections refused", "listener", l.limits.Name, "count", n, "last_cause", why, "last_address", from.String())
}

// ClientAddress returns the address by which a client is counted: for IPv6, its /64.
func ClientAddress(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.IPv6Unspecified()
	}
	ip := tcp.AddrPort().Addr().Unmap().WithZone("")
	if ip.Is6() && !ip.IsLoopback() {
		prefix, _ := ip.Prefix(64) // never fails for IPv6
		return prefix.Addr()
	}
	return ip
}

// Package connlimit bounds the connections of a listener: in all, per client
// address, and those whose client has not authenticated yet.
//
// A connection starts as unknown and stays so until a request on it was
// authenticated ([Conn.Know]). Unknown connections have few slots: they include the
// TLS handshakes in progress. When the slots are full, the client address with most of
// them makes room for the next, or else a connection that has been unknown for a second,
// so no client can hold them.
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
	// Name of the listener, for logs.
	Name string
	// Total bounds all connections. Default 16,384.
	Total int
	// PerAddress bounds those of one client address (IPv6: one /64). Default 1,024:
	// clients behind one NAT. Near addresses have Total.
	PerAddress int
	// Unknown bounds the connections that are not authenticated. Default 128: about
	// 100 KiB each.
	Unknown int
	// UnknownPerAddress bounds those of one client address. Default 64. Near
	// addresses have Unknown.
	UnknownPerAddress int
	// Rate is how many connections a second one client address may open, Burst how
	// many at once. Defaults 50 and 200: a handshake takes about half a millisecond of
	// CPU, so one address takes up to 2.5 % of a core. Near addresses have 20 times
	// as much.
	Rate  float64
	Burst int
	// Near reports whether an address stands for many clients, such as balancers. Loopback
	// and this machine's own addresses always do.
	Near func(netip.Addr) bool
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

const (
	// grace is how long an unknown connection keeps its slot when others wait for it.
	grace = time.Second
	// nearGrace is how long one of a near address does when others of that address wait:
	// they are other clients. It is short enough for all that may connect in a second.
	nearGrace = 100 * time.Millisecond
	// maxRefused is how many refused requests an unknown connection may have.
	maxRefused = 16
	// An unknown connection may have so many requests a second, and so many at once:
	// health checks and discovery.
	requestRate, requestBurst = 20, 100
	// nearFactor is how much more often near addresses connect.
	nearFactor = 20
	// maxAddresses is from when on addresses without connections are forgotten.
	maxAddresses = 4096
	// sweepEvery bounds how often they are: a client with many addresses must not make
	// every connection look at all of them.
	sweepEvery = time.Second
	// logEvery is how often refusals are logged.
	logEvery = 10 * time.Second
)

// Listener is a listener with limits.
type Listener struct {
	net.Listener
	limits Limits

	mu        sync.Mutex
	total     int
	unknown   list.List // of *Conn, the oldest first
	addresses map[netip.Addr]*address
	swept     time.Time
	freed     chan struct{} // has a value when a slot may be free
	closed    chan struct{}
	once      sync.Once

	refused  atomic.Int64
	lastLog  atomic.Int64
	refusals atomic.Int64 // since the last log
}

// address is a client address.
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

// Close closes the listener. Its connections stay.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// Refused is how many connections were refused.
func (l *Listener) Refused() int64 { return l.refused.Load() }

// Unknown is how many connections are not authenticated.
func (l *Listener) Unknown() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.unknown.Len()
}

// admit accepts a connection, or returns why it is refused. While all slots are taken by young
// unknown connections it waits: the kernel queues further connections.
func (l *Listener) admit(raw net.Conn) (c *Conn, why string) {
	ip := clientAddress(raw.RemoteAddr())
	own := ip == clientAddress(raw.LocalAddr())
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

// orAll is the bound of an address; all for a near one.
func (l *Listener) orAll(a *address, bound, all int) int {
	if a.near {
		return all
	}
	return bound
}

// address finds or makes the entry of a client address; own says that it is the
// server's. Whether it is near is asked each time: balancers get other addresses.
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

// victim is the unknown connection that makes room for one more of address a, and how
// long it may still stay. The address with most of them gives up its oldest at once, so
// that none can make others wait. Near addresses stand for many clients, each of which
// has a short time; and where no address has two, the oldest of all has a second.
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

// oldest is the oldest unknown connection, of one address or of any.
func (l *Listener) oldest(ip netip.Addr) *Conn {
	for e := l.unknown.Front(); e != nil; e = e.Next() {
		if c := e.Value.(*Conn); !ip.IsValid() || c.ip == ip {
			return c
		}
	}
	return nil
}

// know moves a connection out of the unknown ones.
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

// forget counts a connection no longer.
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

// refuse counts a refusal, and logs from time to time.
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

// clientAddress is what a client is counted by.
func clientAddress(a net.Addr) netip.Addr {
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

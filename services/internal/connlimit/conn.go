package connlimit

import (
	"container/list"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Conn is an accepted connection, which counts against the listener's limits.
type Conn struct {
	net.Conn
	// Calls is the number of calls in flight that began before a request was authenticated.
	Calls atomic.Int32
	// Streams is the number of all calls in flight.
	Streams atomic.Int32

	listener *Listener
	ip       netip.Addr
	since    time.Time
	local    localAddr
	known    atomic.Bool
	refused  atomic.Int32

	asks *rate.Limiter // of Allow

	mu     sync.Mutex
	idle   *time.Timer
	closed bool

	// Guarded by the listener's mutex.
	slot *list.Element // in the list of unknown connections
	gone bool
}

// localAddr is a connection's local address. Through it, a handler that gets only the local address
// from its server can find the connection; see Of.
type localAddr struct {
	net.Addr
	conn *Conn
}

// Of returns the connection with this local address, or nil if it was not accepted by a Listener.
func Of(local net.Addr) *Conn {
	a, ok := local.(*localAddr)
	if !ok {
		return nil
	}
	return a.conn
}

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return &c.local }

// Known reports whether a request on the connection was authenticated.
func (c *Conn) Known() bool { return c.known.Load() }

// Know records that a request on the connection was authenticated.
func (c *Conn) Know() {
	if !c.known.Swap(true) {
		c.listener.know(c)
	}
}

// Refused records that a request on the connection was not authenticated. A connection
// with nothing but such requests is closed after a few.
func (c *Conn) Refused() {
	if !c.Known() && c.refused.Add(1) >= maxRefused {
		_ = c.Close()
	}
}

// Allow reports whether an anonymous request may be served now. It is always true after a request on
// the connection was authenticated.
func (c *Conn) Allow() bool {
	if c.Known() {
		return true
	}
	return c.asks.AllowN(c.listener.limits.Now(), 1)
}

// SetIdle closes the connection unless it is active again within d.
func (c *Conn) SetIdle(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
	case c.idle == nil:
		c.idle = time.AfterFunc(d, func() { _ = c.Close() })
	default:
		c.idle.Reset(d)
	}
}

// SetActive cancels SetIdle.
func (c *Conn) SetActive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle != nil {
		c.idle.Stop()
	}
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.mu.Lock()
	c.closed = true
	if c.idle != nil {
		c.idle.Stop()
	}
	c.mu.Unlock()
	c.listener.mu.Lock()
	c.listener.forget(c)
	c.listener.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite closes the sending direction, or the whole connection if it cannot be half closed.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

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

// Conn is a connection that is counted.
type Conn struct {
	net.Conn
	// Calls are the calls in flight that began before the client was known.
	Calls atomic.Int32
	// Streams are all calls in flight.
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

	// Under the listener's lock.
	slot *list.Element // among the unknown connections
	gone bool
}

// localAddr is a connection's local address, by which the connection is found again
// where a server shows only that.
type localAddr struct {
	net.Addr
	conn *Conn
}

// Of is the connection with a local address, if it is one of a limited listener.
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

// Allow reports whether a request of an anonymous client may be answered now. Always for
// a connection whose client was authenticated once.
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

// SetActive ends what SetIdle began.
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

// CloseWrite ends what this side sends, where the connection can.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return c.Close()
}

package connlimit_test

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"keelson.dev/services/internal/connlimit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is a clock that a test advances.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// door is a Listener and the connections that it has accepted.
type door struct {
	*connlimit.Listener
	accepted chan *connlimit.Conn
}

func open(t *testing.T, limits connlimit.Limits) *door {
	t.Helper()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	limits.Name = "test"
	d := &door{connlimit.Wrap(raw, limits), make(chan *connlimit.Conn, 1000)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := d.Accept()
			if err != nil {
				return
			}
			d.accepted <- connlimit.Of(c.LocalAddr())
		}
	}()
	t.Cleanup(func() { d.Close(); <-done })
	return d
}

// from connects from a client address.
func (d *door) from(t *testing.T, ip string) net.Conn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	c, err := dialer.Dial("tcp", d.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// in waits until a connection is accepted.
func (d *door) in(t *testing.T) *connlimit.Conn {
	t.Helper()
	select {
	case c := <-d.accepted:
		t.Cleanup(func() { c.Close() })
		return c
	case <-time.After(30 * time.Second):
		t.Fatal("no connection was accepted")
		return nil
	}
}

// ended waits until the server closes a connection.
func ended(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the connection was not closed: %v", err)
	}
}

func TestPerAddress(t *testing.T) {
	d := open(t, connlimit.Limits{PerAddress: 2, Total: 4})
	for range 2 {
		d.from(t, "127.0.0.2")
		d.in(t).Know()
	}
	ended(t, d.from(t, "127.0.0.2"))
	d.from(t, "127.0.0.3")
	c := d.in(t)
	d.from(t, "127.0.0.1") // near
	d.in(t)
	ended(t, d.from(t, "127.0.0.4")) // more than all
	c.Close()
	d.from(t, "127.0.0.4")
	d.in(t)
	if n := d.Refused(); n != 2 {
		t.Errorf("%d refused, want 2", n)
	}
}

func TestUnknownConnectionsMakeRoom(t *testing.T) {
	now := &clock{now: time.Unix(1000, 0)}
	d := open(t, connlimit.Limits{Unknown: 3, UnknownPerAddress: 2, Now: now.Now})
	first := d.from(t, "127.0.0.2")
	d.in(t)
	d.from(t, "127.0.0.2")
	d.in(t)
	d.from(t, "127.0.0.2") // the oldest of the same address goes at once
	d.in(t)
	ended(t, first)
	other := d.from(t, "127.0.0.3")
	known := d.in(t)
	known.Know()
	third := d.from(t, "127.0.0.4")
	d.in(t)
	// All slots are taken: the next waits until one is free.
	now.add(2 * time.Second)
	d.from(t, "127.0.0.5")
	d.in(t)
	if n := d.Unknown(); n != 3 {
		t.Errorf("%d unknown connections, want 3", n)
	}
	for _, c := range []net.Conn{other, third} { // one is known, one is not the oldest
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("ended: %v", err)
		}
	}
}

// Addresses that occupy all slots cannot make others wait: their own connections are closed, however
// young, and those of others are kept.
func TestManyConnectionsOfOneAddressMakeRoomAtOnce(t *testing.T) {
	begin := time.Unix(1000, 0)
	d := open(t, connlimit.Limits{Unknown: 6, UnknownPerAddress: 3, Now: func() time.Time { return begin }})
	var held []net.Conn
	for _, ip := range []string{"127.0.0.2", "127.0.0.3"} {
		for range 3 {
			held = append(held, d.from(t, ip))
			d.in(t)
		}
	}
	honest := d.from(t, "127.0.0.4")
	c := d.in(t)
	ended(t, held[0])
	for range 4 { // and keeps connecting
		d.from(t, "127.0.0.3")
		d.in(t)
	}
	if _, err := honest.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(io.LimitReader(c, 1)); err != nil || len(b) != 1 {
		t.Errorf("the connection of the other address does not work: %v", err)
	}
}

func TestYoungUnknownConnectionsAreWaitedFor(t *testing.T) {
	now := &clock{now: time.Unix(1000, 0)}
	d := open(t, connlimit.Limits{Unknown: 1, UnknownPerAddress: 1, Now: now.Now})
	first := d.from(t, "127.0.0.2")
	c := d.in(t)
	d.from(t, "127.0.0.3")
	c.Know() // frees the slot
	d.in(t)
	if _, err := first.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(io.LimitReader(c, 1)); err != nil || len(b) != 1 {
		t.Errorf("a known connection does not work: %v", err)
	}
}

func TestRate(t *testing.T) {
	now := &clock{now: time.Unix(1000, 0)}
	d := open(t, connlimit.Limits{Rate: 1, Burst: 2, Now: now.Now})
	for range 2 {
		d.from(t, "127.0.0.2").Close()
		d.in(t).Close()
	}
	ended(t, d.from(t, "127.0.0.2"))
	d.from(t, "127.0.0.3")
	d.in(t)
	now.add(time.Second)
	d.from(t, "127.0.0.2")
	d.in(t)
	for range 20 { // near addresses have 20 times the burst
		d.from(t, "127.0.0.1")
		d.in(t)
	}
}

func TestNear(t *testing.T) {
	balancer := netip.MustParseAddr("127.0.0.9")
	d := open(t, connlimit.Limits{PerAddress: 1, UnknownPerAddress: 1, Near: func(ip netip.Addr) bool { return ip == balancer }})
	for range 3 {
		d.from(t, balancer.String())
		d.in(t)
	}
}

// Clients behind a balancer do not abort each other's handshakes.
func TestYoungConnectionsOfNearAddressesAreWaitedFor(t *testing.T) {
	begin := time.Unix(1000, 0)
	var asked atomic.Int64
	d := open(t, connlimit.Limits{Unknown: 1, Now: func() time.Time { asked.Add(1); return begin }})
	first := d.from(t, "127.0.0.1")
	c := d.in(t)
	before := asked.Load()
	d.from(t, "127.0.0.1")
	for end := time.Now().Add(30 * time.Second); asked.Load() < before+2; { // Near was called at least twice
		if time.Now().After(end) {
			t.Fatal("the connection was not checked")
		}
		runtime.Gosched()
	}
	c.Know() // frees the slot
	d.in(t)
	if _, err := first.Write([]byte("x")); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(io.LimitReader(c, 1)); err != nil || len(b) != 1 {
		t.Errorf("the first connection does not work: %v", err)
	}
}

// An address may become near after it has connected, when a balancer's address becomes known.
func TestNearChanges(t *testing.T) {
	var near atomic.Bool
	d := open(t, connlimit.Limits{PerAddress: 1, Near: func(netip.Addr) bool { return near.Load() }})
	d.from(t, "127.0.0.2")
	d.in(t)
	ended(t, d.from(t, "127.0.0.2"))
	near.Store(true)
	d.from(t, "127.0.0.2")
	d.in(t)
	near.Store(false)
	ended(t, d.from(t, "127.0.0.2"))
}

func TestRefusedRequestsEndAConnection(t *testing.T) {
	now := &clock{now: time.Unix(1000, 0)}
	d := open(t, connlimit.Limits{Now: now.Now})
	other := d.from(t, "127.0.0.2")
	c := d.in(t)
	allowed := 0
	for c.Allow() {
		allowed++
	}
	if allowed == 0 || allowed > 1000 {
		t.Errorf("%d anonymous requests were allowed at once", allowed)
	}
	now.add(time.Second)
	if !c.Allow() {
		t.Error("no anonymous request a second later")
	}
	for range 16 {
		c.Refused()
	}
	ended(t, other)

	d.from(t, "127.0.0.2")
	c = d.in(t)
	c.Know()
	for range 2000 {
		c.Refused()
		if !c.Allow() {
			t.Fatal("a request on a known connection was refused")
		}
	}
	if d.Refused() != 0 || d.Unknown() != 0 {
		t.Errorf("%d refused, %d unknown", d.Refused(), d.Unknown())
	}
}

func TestOfOtherAddresses(t *testing.T) {
	if c := connlimit.Of(&net.TCPAddr{}); c != nil {
		t.Errorf("%v", c)
	}
}

func TestIdleConnectionsEnd(t *testing.T) {
	d := open(t, connlimit.Limits{})
	for idle := time.Millisecond; ; idle *= 2 {
		d.from(t, "127.0.0.2")
		c := d.in(t)
		c.SetIdle(time.Hour)
		began := time.Now()
		c.SetIdle(idle)
		c.SetActive()
		inTime := time.Since(began) < idle // otherwise it may have ended before it became active
		ends := d.from(t, "127.0.0.3")
		d.in(t).SetIdle(idle)
		ended(t, ends)
		err := c.SetReadDeadline(time.Time{})
		c.Close()
		c.SetIdle(time.Millisecond) // starts no timer on a closed connection
		if err == nil {
			return
		}
		if inTime || idle > 10*time.Second {
			t.Fatalf("a connection that became active was closed: %v", err)
		}
	}
}

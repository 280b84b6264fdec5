package balance

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"
)

func TestLimiter(t *testing.T) {
	now := time.Unix(1000, 0)
	l := newLimiter(limits{connections: 3, unanswered: 2, rate: 1, burst: 5})
	l.now = func() time.Time { return now }
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	enter := func(ip netip.Addr, want bool) {
		t.Helper()
		if got := l.enter(ip); got != want {
			t.Errorf("%s: %v", ip, got)
		}
	}
	enter(a, true)
	enter(a, true)
	enter(a, false) // two are unanswered
	enter(b, true)
	l.answered(a)
	l.answered(a)
	enter(a, true)
	l.answered(a)
	enter(a, false) // three connections
	l.leave(a, true)
	enter(a, true)
	l.leave(a, false)
	enter(a, true) // the fifth at once
	l.leave(a, false)
	enter(a, false)
	now = now.Add(time.Second)
	enter(a, true)
	for range 2 * maxConnections {
		enter(netip.MustParseAddr("127.0.0.1"), true)
		enter(netip.IPv6Loopback(), true)
	}
	ip := netip.MustParseAddr("198.18.0.0")
	for range 3 * maxClients {
		ip = ip.Next()
		enter(ip, true)
		l.leave(ip, false)
		now = now.Add(10 * time.Millisecond)
	}
	if len(l.clients) > maxClients+1 {
		t.Errorf("%d addresses are remembered, want at most one more than the limit", len(l.clients))
	}
}

// TestClientsAreBounded opens connections that send nothing.
func TestClientsAreBounded(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		cut, end := context.WithCancel(context.Background())
		defer end()
		bounds := limits{connections: 10, unanswered: 2, rate: 1000, burst: 1000, hello: 50 * time.Millisecond}
		if err := run(ctx, cut, end, front, []string{silent.Addr().String()}, nil, bounds); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	for range 5 { // refused at once, or closed because they were not answered in time
		c, err := dialer.Dial("tcp", front.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		defer func() {
			_ = c.SetReadDeadline(time.Now().Add(30 * time.Second))
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("an unanswered connection stays open: %v", err)
			}
		}()
	}
}

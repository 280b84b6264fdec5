// Package balance forwards TCP connections to one of several backends, so that a control plane
// of several apiservers has one address.
//
// It does not interpret the data: TLS is end to end. Connections go to the backends that are
// ready, round robin, or, if none reports to be ready, to one that accepts. A backend that has
// died together with its address does not refuse connections, but does not answer. Therefore
// the next backend is tried in parallel after a short time, and a backend that did not answer
// or refused ranks behind the others for a while. If a backend closes a connection before it
// has sent a byte, the balancer repeats the same data to another one: until then the client has
// only sent its TLS hello, on which no server acts.
//
// When it stops, it accepts no new connections and gives the open ones some time to end.
// Several processes may share a listener; the others accept the new connections.
//
// The package must never keep a connection whose backend is gone, and never store forwarded
// data other than that hello.
package balance

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxConnections bounds the connections that are forwarded at the same time.
	maxConnections = 4096
	// maxHello bounds the bytes that can be repeated to another backend.
	maxHello = 16 << 10
	// drainTime is how long open connections may continue after a stop.
	drainTime = 5 * time.Second
)

// Run accepts connections on l until ctx ends, and forwards each of them to a backend. Backends
// that do not accept are skipped.
func Run(ctx context.Context, l net.Listener, backends []string) error {
	return RunProbed(ctx, l, backends, nil)
}

// RunProbed is like Run, and calls probe repeatedly to find out whether each backend is ready.
func RunProbed(ctx context.Context, l net.Listener, backends []string, probe Probe) error {
	cut, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	return run(ctx, cut, end, l, backends, probe, defaultLimits)
}

func run(ctx, cut context.Context, end context.CancelFunc, l net.Listener, backends []string, probe Probe, limits limits) error {
	b := &balancer{slots: make(chan struct{}, maxConnections), limits: newLimiter(limits)}
	defer b.wg.Wait()
	for _, address := range backends {
		at := &backend{address: address}
		b.backends = append(b.backends, at)
		if probe != nil {
			b.wg.Go(func() { at.watch(ctx, probe) })
		}
	}
	stop := context.AfterFunc(ctx, func() {
		time.AfterFunc(drainTime, end)
		_ = l.Close()
	})
	defer stop()
	for {
		select {
		case b.slots <- struct{}{}:
		case <-cut.Done():
			return nil
		}
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
				<-b.slots
				continue
			}
			end()
			return err
		}
		from := clientAddress(conn.RemoteAddr())
		if !b.limits.enter(from) {
			conn.Close()
			<-b.slots
			continue
		}
		b.wg.Go(func() {
			defer func() { <-b.slots }()
			b.pass(cut, conn, from)
		})
	}
}

type balancer struct {
	backends []*backend
	turn     atomic.Uint64
	slots    chan struct{}
	limits   *limiter
	wg       sync.WaitGroup
}

// pass forwards the data between a client and a backend until one of them closes its
// connection.
func (b *balancer) pass(ctx context.Context, client net.Conn, from netip.Addr) {
	defer client.Close()
	c := &connection{client: client}
	c.onAnswer = func() { b.limits.answered(from) }
	defer func() { b.limits.leave(from, c.isAnswered()) }()
	hello := time.AfterFunc(b.limits.hello, c.closeUnanswered)
	defer hello.Stop()
	tried := make(map[*backend]bool, len(b.backends))
	if !c.connect(b.dial(ctx, tried)) {
		return
	}
	defer c.close()
	stop := context.AfterFunc(ctx, c.close)
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(c.up)
	for !c.answer() {
		if !c.mayRepeat() || !c.connect(b.dial(ctx, tried)) {
			c.close()
			return
		}
	}
}

// connection is a client's connection and that to its current backend.
type connection struct {
	client   net.Conn
	onAnswer func() // called once

	mu       sync.Mutex
	backend  net.Conn
	hello    []byte // what the client has sent so far
	answered bool   // the backend has sent something
	overlong bool   // the client has sent more than fits in hello
	done     bool   // the client has closed its sending side
	closed   bool
}

// connect makes to, which may be nil, the backend and repeats the hello to it. It returns false
// if there is no backend or the connection is closed.
func (c *connection) connect(to net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if to == nil || c.closed {
		if to != nil {
			to.Close()
		}
		return false
	}
	if c.backend != nil {
		c.backend.Close()
	}
	c.backend = to
	if len(c.hello) > 0 {
		_, _ = to.Write(c.hello) // an error is noticed by reading
	}
	if c.done {
		closeWrite(to)
	}
	return true
}

// close closes both sides.
func (c *connection) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.client.Close()
	if c.backend != nil {
		c.backend.Close()
	}
}

// closeUnanswered closes both sides unless the backend has sent something.
func (c *connection) closeUnanswered() {
	if !c.isAnswered() {
		c.close()
	}
}

func (c *connection) isAnswered() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answered
}

// mayRepeat reports whether the hello may be repeated to another backend.
func (c *connection) mayRepeat() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.answered && !c.overlong && !c.closed
}

// up forwards what the client sends.
func (c *connection) up() {
	buf := make([]byte, 4<<10)
	for {
		n, err := c.client.Read(buf)
		c.mu.Lock()
		answered, to := c.answered, c.backend
		if !answered {
			if len(c.hello)+n > maxHello {
				c.overlong, c.hello = true, nil
			}
			if !c.overlong {
				c.hello = append(c.hello, buf[:n]...)
			}
			c.done = errors.Is(err, io.EOF)
			if n > 0 {
				_, _ = to.Write(buf[:n]) // see connect
			}
			if c.done {
				closeWrite(to)
			}
		} else {
			c.hello = nil
		}
		c.mu.Unlock()
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			c.close()
			return
		case answered:
			if n > 0 {
				if _, werr := to.Write(buf[:n]); werr != nil {
					c.close()
					return
				}
			}
			if err != nil {
				closeWrite(to)
				return
			}
			flow(to, c.client)
			return
		case err != nil:
			return
		}
	}
}

// answer forwards what the backend sends. It returns false if the backend closed the connection
// without sending anything.
func (c *connection) answer() bool {
	c.mu.Lock()
	from := c.backend
	c.mu.Unlock()
	buf := make([]byte, 4<<10)
	n, err := from.Read(buf)
	if n == 0 && err != nil {
		return false
	}
	c.mu.Lock()
	c.answered = true
	c.mu.Unlock()
	c.onAnswer()
	if _, werr := c.client.Write(buf[:n]); werr != nil {
		c.close()
		return true
	}
	flow(c.client, from)
	return true
}

// flow copies one direction, and closes it at the end of the stream. If the copy fails, it
// closes both directions.
func flow(to, from net.Conn) {
	if _, err := io.Copy(to, from); err == nil && closeWrite(to) {
		return
	}
	to.Close()
	from.Close()
}

func closeWrite(c net.Conn) bool {
	half, ok := c.(interface{ CloseWrite() error })
	if ok {
		_ = half.CloseWrite()
	}
	return ok
}

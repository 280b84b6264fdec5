// Package balance passes TCP connections on to whichever of several backends takes
// them, so that one address reaches a control plane of several apiservers.
//
// It knows nothing of what is said: TLS goes through from end to end. A connection
// goes to a backend that is ready, in turn, or where none says so, to one that
// accepts. One that has died together with its address does not refuse, it is
// silent: so the next is tried beside it after a moment, and who was silent or
// refused comes late for a while. If a backend ends before it has sent the first byte, another is asked
// the same: so far the client has said hello, which no TLS server acts on. On the
// way down it takes no new connection and lets the present ones end for a while:
// several processes may share a listener, and the others take the new ones.
//
// It must never hold a connection whose backend is gone, nor keep anything of what
// it passes on but that hello.
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
	// maxConnections bounds what is passed on at once.
	maxConnections = 4096
	// maxHello bounds what is said again to another backend.
	maxHello = 16 << 10
	// drainTime is how long connections may go on when it ends.
	drainTime = 5 * time.Second
)

// Run accepts on l until ctx ends and passes each connection on. A backend that
// does not accept is passed over for the next.
func Run(ctx context.Context, l net.Listener, backends []string) error {
	return RunProbed(ctx, l, backends, nil)
}

// RunProbed is Run with a probe that tells whether a backend is ready; it is asked
// again and again.
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

// pass connects a client with a backend until one of them ends.
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

// connection is a client and its backend of the moment.
type connection struct {
	client   net.Conn
	onAnswer func() // called once

	mu       sync.Mutex
	backend  net.Conn
	hello    []byte // what the client has said
	answered bool   // the backend has said something
	overlong bool   // hello is not all
	done     bool   // the client has said all
	closed   bool
}

// connect takes a backend, which may be nil, and repeats the hello to it.
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
		_, _ = to.Write(c.hello) // reading says what became of it
	}
	if c.done {
		closeWrite(to)
	}
	return true
}

// close ends both sides.
func (c *connection) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.client.Close()
	if c.backend != nil {
		c.backend.Close()
	}
}

// closeUnanswered ends both sides unless the backend has said something.
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

// mayRepeat tells whether another backend may be asked the same.
func (c *connection) mayRepeat() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.answered && !c.overlong && !c.closed
}

// up passes on what the client says.
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
				_, _ = to.Write(buf[:n]) // as above
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

// answer passes on what the backend says; false if it ended without a word.
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

// flow copies one direction, and passes its end on. An end that is no end of the
// stream ends both directions.
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

// Package balance passes TCP connections on to whichever of several backends takes
// them, so that one address reaches a control plane of several apiservers.
//
// It knows nothing of what is said: TLS goes through from end to end. Backends take
// turns. One that has died together with its address does not refuse, it is silent:
// so the next is tried beside it after a moment, the first that accepts is taken,
// and who was silent or refused comes last for a while. It must never hold a
// connection whose backend is gone, nor keep anything of what it passes on.
package balance

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// dialTime is how long the backends may take to accept.
	dialTime = 2 * time.Second
	// stagger is how long one is waited for before the next is tried beside it.
	stagger = 150 * time.Millisecond
	// suspicion is for how long a backend comes last that did not accept.
	suspicion = 3 * time.Second
	// maxConnections bounds what is passed on at once.
	maxConnections = 4096
)

// Run accepts on l until ctx ends and passes each connection on. A backend that
// does not accept is passed over for the next.
func Run(ctx context.Context, l net.Listener, backends []string) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	b := &balancer{backends: backends, suspects: make([]atomic.Int64, len(backends)), slots: make(chan struct{}, maxConnections)}
	defer b.wg.Wait()
	for {
		b.slots <- struct{}{}
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if t, ok := errors.AsType[net.Error](err); ok && t.Timeout() {
				<-b.slots
				continue
			}
			return err
		}
		b.wg.Go(func() {
			defer func() { <-b.slots }()
			b.pass(ctx, conn)
		})
	}
}

type balancer struct {
	backends []string
	// suspects are until when each backend comes last, in nanoseconds since 1970.
	suspects []atomic.Int64
	turn     atomic.Uint64
	slots    chan struct{}
	wg       sync.WaitGroup
}

// pass connects a client with a backend until one of them ends.
func (b *balancer) pass(ctx context.Context, client net.Conn) {
	defer client.Close()
	backend := b.dial(ctx)
	if backend == nil {
		return
	}
	defer backend.Close()
	stop := context.AfterFunc(ctx, func() { client.Close(); backend.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { flow(backend, client) })
	flow(client, backend)
	wg.Wait()
}

// flow copies one direction, and passes its end on. An end that is no end of the
// stream ends both directions.
func flow(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		_ = half.CloseWrite()
		return
	}
	to.Close()
	from.Close()
}

// order is the backends by turn, those last that did not accept lately.
func (b *balancer) order() []int {
	first := int(b.turn.Add(1) % uint64(len(b.backends)))
	var well, suspect []int
	now := time.Now().UnixNano()
	for i := range b.backends {
		n := (first + i) % len(b.backends)
		if b.suspects[n].Load() > now {
			suspect = append(suspect, n)
		} else {
			well = append(well, n)
		}
	}
	return append(well, suspect...)
}

func (b *balancer) suspect(n int) {
	b.suspects[n].Store(time.Now().Add(suspicion).UnixNano())
}

// dial connects to the backend whose turn it is, or to another one that accepts
// before it.
func (b *balancer) dial(ctx context.Context) net.Conn {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	type result struct {
		backend int
		conn    net.Conn
		err     error
	}
	waiting := b.order()
	results := make(chan result, len(waiting)) // room for all: nobody is held up
	pending := map[int]bool{}
	next := func() {
		if len(waiting) == 0 {
			return
		}
		n := waiting[0]
		waiting = waiting[1:]
		pending[n] = true
		b.wg.Go(func() {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", b.backends[n])
			results <- result{n, conn, err}
		})
	}
	timer := time.NewTicker(stagger)
	defer timer.Stop()
	var taken net.Conn
	for next(); taken == nil && len(pending) > 0; {
		select {
		case r := <-results:
			delete(pending, r.backend)
			if r.err == nil {
				taken = r.conn
				b.suspects[r.backend].Store(0)
				break
			}
			b.suspect(r.backend)
			slog.DebugContext(ctx, "backend does not accept", "address", b.backends[r.backend], "error", r.err)
			next()
		case <-timer.C:
			for n := range pending {
				b.suspect(n)
			}
			next()
		}
	}
	cancel()
	for range pending {
		if r := <-results; r.conn != nil {
			r.conn.Close() // it accepted a moment too late
		}
	}
	if taken == nil {
		slog.WarnContext(ctx, "no backend accepts connections", "backends", b.backends)
	}
	return taken
}

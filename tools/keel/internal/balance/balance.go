// Package balance passes TCP connections on to whichever of several backends takes
// them, so that one address reaches a control plane of several apiservers.
//
// It knows nothing of what is said: TLS goes through from end to end. It must never
// hold a connection whose backend is gone, nor keep anything of what it passes on.
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
	// dialTime is how long a backend may take to accept.
	dialTime = time.Second
	// maxConnections bounds what is passed on at once.
	maxConnections = 4096
)

// Run accepts on l until ctx ends and passes each connection on. A backend that
// does not accept is passed over for the next.
func Run(ctx context.Context, l net.Listener, backends []string) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	b := &balancer{backends: backends, slots: make(chan struct{}, maxConnections)}
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

// dial connects to the backend whose turn it is, or the next that accepts.
func (b *balancer) dial(ctx context.Context) net.Conn {
	first := b.turn.Add(1)
	d := net.Dialer{Timeout: dialTime}
	for i := range uint64(len(b.backends)) {
		address := b.backends[(first+i)%uint64(len(b.backends))]
		conn, err := d.DialContext(ctx, "tcp", address)
		if err == nil {
			return conn
		}
		slog.DebugContext(ctx, "backend does not accept", "address", address, "error", err)
	}
	slog.WarnContext(ctx, "no backend accepts connections", "backends", b.backends)
	return nil
}

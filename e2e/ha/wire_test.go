package ha_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
)

// wire lies between a client and its servers and can hold up what the client sends, as a
// network or a stopped machine would: it loses nothing, all of it arrives later. What
// servers send passes.
type wire struct {
	mu      sync.Mutex
	changed *sync.Cond
	holding bool
	ended   bool
	held    int // bytes that are held up
	conns   map[net.Conn]struct{}
	wg      sync.WaitGroup
}

func newWire(t *testing.T) *wire {
	t.Helper()
	w := &wire{conns: map[net.Conn]struct{}{}}
	w.changed = sync.NewCond(&w.mu)
	t.Cleanup(func() {
		w.mu.Lock()
		w.ended = true
		w.changed.Broadcast()
		for c := range w.conns {
			c.Close()
		}
		w.mu.Unlock()
		w.wg.Wait()
	})
	return w
}

// dial connects to an address through the wire.
func (w *wire) dial(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	server, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	inside, outside := net.Pipe()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		server.Close()
		return nil, net.ErrClosed
	}
	w.conns[server], w.conns[inside] = struct{}{}, struct{}{}
	q := &queued{wire: w}
	w.wg.Go(func() { q.read(inside) })
	w.wg.Go(func() { q.write(server) })
	w.wg.Go(func() { _, _ = io.Copy(inside, server); inside.Close() })
	return outside, nil
}

// hold keeps what the client sends from now on; release lets all of it arrive.
func (w *wire) hold()    { w.set(true) }
func (w *wire) release() { w.set(false) }

func (w *wire) set(holding bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holding = holding
	w.changed.Broadcast()
}

// waiting is the number of bytes that are held up.
func (w *wire) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.held
}

// queued is what the client has sent on one connection and has not arrived.
type queued struct {
	*wire

	bytes []byte
	end   bool
}

func (q *queued) read(client net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		q.mu.Lock()
		q.bytes = append(q.bytes, buf[:n]...)
		q.held += n
		q.end = err != nil
		q.changed.Broadcast()
		q.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (q *queued) write(server net.Conn) {
	defer server.Close()
	for {
		q.mu.Lock()
		for !q.ended && (q.holding || len(q.bytes) == 0 && !q.end) {
			q.changed.Wait()
		}
		out := q.bytes
		q.bytes = nil
		q.held -= len(out)
		over := q.ended || q.end && len(out) == 0
		q.mu.Unlock()
		if over {
			return
		}
		if _, err := server.Write(out); err != nil {
			return
		}
	}
}

package balance

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"time"
)

const (
	// dialTime bounds how long the backends may take to accept a connection.
	dialTime = 2 * time.Second
	// stagger is how long to wait for one backend before the next is tried in parallel.
	stagger = 150 * time.Millisecond
	// suspicion is how long a backend that did not accept a connection ranks behind the others.
	suspicion = 3 * time.Second
)

// backend is a server behind the balancer.
type backend struct {
	address string
	// unready is the result of the last probe.
	unready atomic.Bool
	// suspect is the time until which it ranks behind the others, in nanoseconds since 1970.
	suspect atomic.Int64
}

// doubt makes the backend rank behind the others for the time suspicion.
func (b *backend) doubt() { b.suspect.Store(time.Now().Add(suspicion).UnixNano()) }

// late returns the rank of a backend: 0 first, 1 if it did not accept a connection recently, 2
// if it is not ready.
func (b *backend) late(now time.Time) int {
	switch {
	case b.unready.Load():
		return 2
	case b.suspect.Load() > now.UnixNano():
		return 1
	}
	return 0
}

// order returns the backends that have not been tried, in the order in which to try them: round
// robin, and by rank.
func (b *balancer) order(tried map[*backend]bool) []*backend {
	first, now := b.turn.Add(1), time.Now()
	var out []*backend
	late := map[*backend]int{}
	for i := range uint64(len(b.backends)) {
		if at := b.backends[(first+i)%uint64(len(b.backends))]; !tried[at] {
			out = append(out, at)
			late[at] = at.late(now)
		}
	}
	slices.SortStableFunc(out, func(x, y *backend) int { return late[x] - late[y] })
	return out
}

// dial connects to the next backend that has not been tried, or to another one that accepts
// before it. It returns nil if none does.
func (b *balancer) dial(ctx context.Context, tried map[*backend]bool) net.Conn {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	type result struct {
		at   *backend
		conn net.Conn
		err  error
	}
	waiting := b.order(tried)
	results := make(chan result, len(waiting)) // room for all, so that no sender blocks
	pending := map[*backend]bool{}
	next := func() {
		if len(waiting) == 0 {
			return
		}
		at := waiting[0]
		waiting = waiting[1:]
		pending[at] = true
		b.wg.Go(func() {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", at.address)
			results <- result{at, conn, err}
		})
	}
	timer := time.NewTicker(stagger)
	defer timer.Stop()
	var taken net.Conn
	for next(); taken == nil && len(pending) > 0; {
		select {
		case r := <-results:
			delete(pending, r.at)
			tried[r.at] = true
			if r.err == nil {
				taken = r.conn
				r.at.suspect.Store(0)
				break
			}
			r.at.doubt()
			slog.DebugContext(ctx, "a backend did not accept a connection", "address", r.at.address, "error", r.err)
			next()
		case <-timer.C:
			for at := range pending {
				at.doubt()
			}
			next()
		}
	}
	cancel()
	for range pending {
		if r := <-results; r.conn != nil {
			r.conn.Close() // it accepted too late
		}
	}
	if taken == nil {
		slog.WarnContext(ctx, "no backend accepted a connection", "backends", len(b.backends))
	}
	return taken
}

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
	// dialTime is how long the backends may take to accept.
	dialTime = 2 * time.Second
	// stagger is how long one is waited for before the next is tried beside it.
	stagger = 150 * time.Millisecond
	// suspicion is for how long a backend comes late that did not accept.
	suspicion = 3 * time.Second
)

// backend is a server behind the balancer.
type backend struct {
	address string
	// unready is what the probe says.
	unready atomic.Bool
	// suspect is until when it comes late, in nanoseconds since 1970.
	suspect atomic.Int64
}

func (b *backend) doubt() { b.suspect.Store(time.Now().Add(suspicion).UnixNano()) }

// late is how far back a backend stands whose turn it is: behind the others if it
// did not accept lately, behind all if it is not ready.
func (b *backend) late(now time.Time) int {
	switch {
	case b.unready.Load():
		return 2
	case b.suspect.Load() > now.UnixNano():
		return 1
	}
	return 0
}

// order is the backends that were not tried, in turn.
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

// dial connects to the backend whose turn it is, or to another one that accepts
// before it, of those that were not tried; nil if there is none.
func (b *balancer) dial(ctx context.Context, tried map[*backend]bool) net.Conn {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	type result struct {
		at   *backend
		conn net.Conn
		err  error
	}
	waiting := b.order(tried)
	results := make(chan result, len(waiting)) // room for all: nobody is held up
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
			slog.DebugContext(ctx, "backend does not accept", "address", r.at.address, "error", r.err)
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
			r.conn.Close() // it accepted a moment too late
		}
	}
	if taken == nil {
		slog.WarnContext(ctx, "no backend takes a connection", "backends", len(b.backends))
	}
	return taken
}

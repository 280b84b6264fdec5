package leader

import (
	"context"
	"sync"
)

type gateKey struct{}

// gate is open while leadership is confirmed, that is, the Lease was renewed in time.
type gate struct {
	work context.Context // that of the whole term

	mu     sync.Mutex
	period context.Context // ends with the present confirmation; nil while the gate is shut
	cancel context.CancelFunc
	opened chan struct{} // closed when the gate opens
}

// withGate returns the term's context with a gate in it, open.
func withGate(ctx context.Context) (context.Context, *gate) {
	g := &gate{}
	g.work = context.WithValue(ctx, gateKey{}, g)
	g.opened = make(chan struct{})
	g.open()
	return g.work, g
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.period == nil {
		g.period, g.cancel = context.WithCancel(g.work)
		close(g.opened)
	}
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.period != nil {
		g.cancel()
		g.period, g.opened = nil, make(chan struct{})
	}
}

// Await waits until leadership is confirmed, and returns a context that ends as soon as it
// no longer is. Each step of work in a term with Config.Pause begins with a call of it.
// Outside such a term it returns ctx itself. It returns ctx's error if ctx ends first.
func Await(ctx context.Context) (context.Context, error) {
	g, ok := ctx.Value(gateKey{}).(*gate)
	if !ok {
		return ctx, ctx.Err()
	}
	for {
		g.mu.Lock()
		period, opened := g.period, g.opened
		g.mu.Unlock()
		if period != nil && period.Err() == nil {
			return period, nil
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-opened:
		}
	}
}

package boot

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

// Group holds the goroutines of a service. The first that fails stops all. They are
// stopped in the reverse of the order in which they were started, one at a time: each has
// ended before the context of the next is cancelled.
type Group struct {
	base    context.Context // the values of the program's context; never cancelled
	started chan struct{}   // closed once the program's Run has returned without an error
	failed  chan error      // the first failure
	mu      sync.Mutex
	steps   []*step
	alive   []func(context.Context) error
}

// step is one goroutine or, if done is nil, a function to call when the group stops.
type step struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	close  func(context.Context) error
}

func newGroup(ctx context.Context) *Group {
	return &Group{base: context.WithoutCancel(ctx), started: make(chan struct{}), failed: make(chan error, 1)}
}

// Go runs f in a goroutine. An error stops the group, unless f's context has been
// cancelled by then; nil ends the goroutine only. A panic counts as an error.
func (g *Group) Go(name string, f func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(g.base)
	s := &step{name: name, cancel: cancel, done: make(chan struct{})}
	g.add(s)
	go func() {
		defer close(s.done)
		defer cancel()
		err := func() (err error) {
			defer recovered(name, &err)
			return f(ctx)
		}()
		if err != nil && ctx.Err() == nil {
			g.fail(fmt.Errorf("%s: %w", name, err))
		}
	}()
}

// OnStop has f called when the group stops, after everything that was started after this
// call has ended.
func (g *Group) OnStop(name string, f func(ctx context.Context) error) {
	g.add(&step{name: name, close: f})
}

func (g *Group) add(s *step) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.steps = append(g.steps, s)
}

func (g *Group) fail(err error) {
	select {
	case g.failed <- err:
	default: // not the first
	}
}

// wait returns at the first failure, when ctx ends, or when every goroutine has returned.
func (g *Group) wait(ctx context.Context) error {
	idle := make(chan struct{})
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for i := 0; ; i++ {
			g.mu.Lock()
			if i >= len(g.steps) {
				g.mu.Unlock()
				close(idle)
				return
			}
			s := g.steps[i]
			g.mu.Unlock()
			if s.done == nil {
				continue
			}
			select {
			case <-s.done:
			case <-stop:
				return
			}
		}
	}()
	select {
	case err := <-g.failed:
		return err
	case <-ctx.Done():
		return nil
	case <-idle:
		select {
		case err := <-g.failed:
			return err
		default:
			return nil
		}
	}
}

// stop stops the steps from the last to the first. The error names the first goroutine
// that has not ended within patience; such goroutines are abandoned.
func (g *Group) stop(patience time.Duration) error {
	ctx, cancel := context.WithTimeout(g.base, patience)
	defer cancel()
	var first error
	for {
		g.mu.Lock()
		n := len(g.steps)
		if n == 0 {
			g.mu.Unlock()
			break
		}
		s := g.steps[n-1]
		g.steps = g.steps[:n-1]
		g.mu.Unlock()
		if err := s.stop(ctx); err != nil && first == nil {
			first = err
		}
	}
	select {
	case err := <-g.failed:
		return err
	default:
		return first
	}
}

func (s *step) stop(ctx context.Context) (err error) {
	if s.close != nil {
		defer recovered(s.name, &err)
		if err := s.close(ctx); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		return nil
	}
	s.cancel()
	select {
	case <-s.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s did not end in time", s.name)
	}
}

// recovered is deferred: it turns a panic into an error and logs its stack.
func recovered(name string, err *error) {
	if p := recover(); p != nil {
		slog.ErrorContext(context.Background(), "panic", "in", name, "value", fmt.Sprint(p), "stack", string(debug.Stack()))
		*err = fmt.Errorf("panic: %v", p)
	}
}

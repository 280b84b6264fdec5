package raft

import (
	"context"
	"sync"

	"keelson.dev/services/apiserver/internal/store"
)

// shared lets concurrent callers share calls of a function. Each waits for a call that starts
// after its own do began, never for one that was already running.
type shared[T any] struct {
	mu      sync.Mutex
	next    *sharedCall[T]
	running bool
	ended   bool
	wg      sync.WaitGroup
}

type sharedCall[T any] struct {
	done  chan struct{}
	value T
	err   error
}

// do calls f, or shares a call of it, and returns its result.
func (s *shared[T]) do(ctx context.Context, f func() (T, error)) (T, error) {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		var none T
		return none, store.ErrClosed
	}
	c := s.next
	if c == nil {
		c = &sharedCall[T]{done: make(chan struct{})}
		s.next = c
	}
	if !s.running {
		s.running = true
		s.wg.Go(func() { s.run(f) })
	}
	s.mu.Unlock()
	select {
	case <-c.done:
		return c.value, c.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

func (s *shared[T]) run(f func() (T, error)) {
	for {
		s.mu.Lock()
		c := s.next
		s.next = nil
		if c == nil {
			s.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		c.value, c.err = f()
		close(c.done)
	}
}

// end makes later calls of do fail with ErrClosed, and waits until no call is running.
func (s *shared[T]) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.wg.Wait()
}

package raft

import (
	"context"
	"sync"

	"keelson.dev/services/apiserver/internal/store"
)

// shared lets callers share one call of a function. Each joins a call that
// begins after it came, never one that runs already.
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

// end lets nobody begin any more, and waits until no call runs.
func (s *shared[T]) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.wg.Wait()
}

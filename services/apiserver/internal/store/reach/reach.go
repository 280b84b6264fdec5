// Package reach makes a store fail at once while too few of its members answer.
//
// An apiserver whose member is cut off from the others does not notice that by itself: its
// reads wait until they time out, its writes end with an unknown outcome, and its watches stay
// open without events, as long as the cut lasts. If it fails their calls at once instead, clients
// can use another apiserver.
//
// # States
//
//	reachable    every call goes to the store.
//	unreachable  a probe (a linearizable read of the revision, every half second, with a
//	             timeout of two seconds) has failed. New calls fail with
//	             store.ErrUnavailable: nothing was done, and another apiserver may do it.
//	             Reads in progress and watches end with the same error. Writes in progress
//	             are left to the store, which alone can resolve their outcome.
//
// A probe that succeeds makes the store reachable again. An election takes less time than a
// probe, so that it does not make calls fail.
//
// The package must never return ErrUnavailable for a write that may have been applied, and
// never change a value.
package reach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/internal/ops"
)

// Store wraps a store and knows whether it can be reached.
type Store struct {
	inner store.Store
	name  string
	probe *ops.Probe
	state atomic.Pointer[state]
	rev   atomic.Int64
}

// state is one period in which the store is reachable or unreachable.
type state struct {
	// refusal is the error of calls, or nil while the store is reachable.
	refusal error
	// over is cancelled, with a refusal as its cause, when a reachable store becomes
	// unreachable.
	over context.Context
	end  context.CancelCauseFunc
}

// New wraps a store. name identifies it in messages. The store counts as reachable until Run
// has probed it.
func New(name string, inner store.Store) *Store {
	s := &Store{inner: inner, name: name}
	s.probe = ops.NewProbe(s.look)
	s.state.Store(reachable())
	return s
}

func reachable() *state {
	over, end := context.WithCancelCause(context.Background())
	return &state{over: over, end: end}
}

// Run probes the store until ctx ends.
func (s *Store) Run(ctx context.Context) error { return s.probe.Run(ctx) }

// Check returns the result of the last probe.
func (s *Store) Check(ctx context.Context) error { return s.probe.Check(ctx) }

// Unwrap returns the wrapped store.
func (s *Store) Unwrap() store.Store { return s.inner }

// Probed returns the revision that the last successful probe found, or 0 before the first.
func (s *Store) Probed() store.Revision { return store.Revision(s.rev.Load()) }

// look probes the store. A probe that was cancelled changes nothing.
func (s *Store) look(ctx context.Context) error {
	rev, err := s.inner.Revision(ctx)
	if err == nil {
		s.rev.Store(int64(rev))
	}
	if err == nil || !errors.Is(ctx.Err(), context.Canceled) {
		s.saw(ctx, err)
	}
	return err
}

// saw applies the result of a probe. It is only called by look.
func (s *Store) saw(ctx context.Context, err error) {
	was := s.state.Load()
	switch {
	case err != nil && was.refusal == nil:
		slog.WarnContext(ctx, "the store cannot be reached: refusing requests until it answers", "store", s.name, "error", err)
		refusal := fmt.Errorf("%s: %w", s.name, store.ErrUnavailable)
		s.state.Store(&state{refusal: refusal})
		was.end(refusal)
	case err == nil && was.refusal != nil:
		slog.InfoContext(ctx, "the store can be reached again", "store", s.name)
		s.state.Store(reachable())
	}
}

// read calls f with a context that is cancelled when the store becomes unreachable.
func (s *Store) read(ctx context.Context, f func(context.Context) error) error {
	now := s.state.Load()
	if now.refusal != nil {
		return now.refusal
	}
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(now.over, cancel)
	defer stop()
	err := f(inner)
	if err != nil && ctx.Err() == nil && inner.Err() != nil {
		return context.Cause(now.over)
	}
	return err
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (entry store.Entry, rev store.Revision, err error) {
	err = s.read(ctx, func(ctx context.Context) (err error) {
		entry, rev, err = s.inner.Get(ctx, key)
		return err
	})
	return entry, rev, err
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, opts store.ListOptions) (page store.Page, err error) {
	err = s.read(ctx, func(ctx context.Context) (err error) {
		page, err = s.inner.List(ctx, prefix, opts)
		return err
	})
	return page, err
}

// Revision implements store.Store.
func (s *Store) Revision(ctx context.Context) (rev store.Revision, err error) {
	err = s.read(ctx, func(ctx context.Context) (err error) {
		rev, err = s.inner.Revision(ctx)
		return err
	})
	return rev, err
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, writes []store.Write) ([]store.Verdict, error) {
	if now := s.state.Load(); now.refusal != nil {
		return nil, now.refusal
	}
	return s.inner.Commit(ctx, writes)
}

// Compact implements store.Store.
func (s *Store) Compact(ctx context.Context, rev store.Revision) error {
	if now := s.state.Load(); now.refusal != nil {
		return now.refusal
	}
	return s.inner.Compact(ctx, rev)
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Revision) (w store.Watch, err error) {
	now := s.state.Load()
	// ctx must stay valid for the whole watch, so it cannot be one of read's.
	if now.refusal != nil {
		return nil, now.refusal
	}
	if w, err = s.inner.Watch(ctx, prefix, after); err != nil {
		return nil, err
	}
	return &watch{Watch: w, since: now}, nil
}

// watch ends when the store becomes unreachable.
type watch struct {
	store.Watch
	since *state
}

// Next implements store.Watch.
func (w *watch) Next(ctx context.Context) (store.Batch, error) {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(w.since.over, cancel)
	defer stop()
	b, err := w.Watch.Next(inner)
	if err != nil && ctx.Err() == nil && inner.Err() != nil {
		return store.Batch{}, context.Cause(w.since.over)
	}
	return b, err
}

// Package reach refuses at once what a store cannot do while too few of its members
// answer.
//
// An apiserver whose member is cut off from the others does not notice by itself: its
// reads wait until they are given up, its writes end with an unknown outcome, and its
// watches stand still and look well, for as long as the cut lasts. Others may be able
// to do better, if only the clients knew.
//
// # States
//
//	reachable  everything goes to the store.
//	cut off    a look (a linearizable read of the revision, every half second, given
//	           two) has failed. What comes is refused with store.ErrUnavailable: nothing
//	           was done, another apiserver may do it. Reads under way and watches end
//	           with the same. Writes under way are left to the store, which alone can
//	           find out what became of them.
//
// A look that succeeds makes it reachable again. An election takes less than a look, so
// nothing is refused because of one.
//
// It must never refuse what may have been done, and never touch a value.
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

// Store is a store that knows whether it can be reached.
type Store struct {
	inner store.Store
	name  string
	probe *ops.Probe
	state atomic.Pointer[state]
}

// state is one of the two, for as long as it lasts.
type state struct {
	// refusal is nil while the store is reachable.
	refusal error
	// over ends, with a refusal as its cause, when a reachable store is cut off.
	over context.Context
	end  context.CancelCauseFunc
}

// New makes a store of another one, which has a name for messages. It is taken for
// reachable until Run has looked.
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

// Run looks again and again until ctx ends.
func (s *Store) Run(ctx context.Context) error { return s.probe.Run(ctx) }

// Check is what the last look found.
func (s *Store) Check(ctx context.Context) error { return s.probe.Check(ctx) }

// Unwrap is the store behind.
func (s *Store) Unwrap() store.Store { return s.inner }

func (s *Store) look(ctx context.Context) error {
	_, err := s.inner.Revision(ctx)
	if err == nil || !errors.Is(ctx.Err(), context.Canceled) {
		s.saw(err)
	}
	return err
}

// saw takes over what a look found. Only the one who looks calls it.
func (s *Store) saw(err error) {
	was := s.state.Load()
	switch {
	case err != nil && was.refusal == nil:
		slog.Warn("store is out of reach: requests are refused until it answers", "store", s.name, "error", err)
		refusal := fmt.Errorf("%s: %w", s.name, store.ErrUnavailable)
		s.state.Store(&state{refusal: refusal})
		was.end(refusal)
	case err == nil && was.refusal != nil:
		slog.Info("store is in reach again", "store", s.name)
		s.state.Store(reachable())
	}
}

// read calls f, with a context that ends when the store is cut off.
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
	// What the watch needs for longer than this call has ctx.
	if now.refusal != nil {
		return nil, now.refusal
	}
	if w, err = s.inner.Watch(ctx, prefix, after); err != nil {
		return nil, err
	}
	return &watch{Watch: w, since: now}, nil
}

// watch ends when the store is cut off.
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

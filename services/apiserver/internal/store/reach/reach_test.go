package reach

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/memory"
	"keelson.dev/services/apiserver/internal/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		s := memory.New()
		t.Cleanup(s.Close)
		return New("memory", s)
	})
}

// isolated is a store that, while cut is set, does not answer.
type isolated struct {
	*memory.Store
	cut     atomic.Bool
	commits atomic.Int32
}

func (s *isolated) wait(ctx context.Context) error {
	if !s.cut.Load() {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (s *isolated) Revision(ctx context.Context) (store.Revision, error) {
	if err := s.wait(ctx); err != nil {
		return 0, err
	}
	return s.Store.Revision(ctx)
}

func (s *isolated) Get(ctx context.Context, key string) (store.Entry, store.Revision, error) {
	if err := s.wait(ctx); err != nil {
		return store.Entry{}, 0, err
	}
	return s.Store.Get(ctx, key)
}

func (s *isolated) List(ctx context.Context, prefix string, o store.ListOptions) (store.Page, error) {
	if err := s.wait(ctx); err != nil {
		return store.Page{}, err
	}
	return s.Store.List(ctx, prefix, o)
}

func (s *isolated) Commit(ctx context.Context, writes []store.Write) ([]store.Verdict, error) {
	s.commits.Add(1)
	return s.Store.Commit(ctx, writes)
}

func start(t *testing.T) (*isolated, *Store) {
	t.Helper()
	inner := &isolated{Store: memory.New()}
	t.Cleanup(inner.Close)
	s := New("test", inner)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return inner, s
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-deadline:
			t.Fatal("timed out waiting until " + what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func put(key string) []store.Write { return []store.Write{{Key: key, Value: []byte("v")}} }

func TestCutOff(t *testing.T) {
	inner, s := start(t)
	eventually(t, "looked", func() bool { return s.Check(t.Context()) == nil })
	verdicts, err := s.Commit(t.Context(), put("/a"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the write is probed", func() bool { return s.Probed() >= verdicts[0].Revision })
	w, err := s.Watch(t.Context(), "/", verdicts[0].Revision)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()

	// Calls in progress end when the store becomes unreachable. Without this package, they
	// would wait as long as their callers do.
	inner.cut.Store(true)
	calls := map[string]func() error{
		"get":      func() error { _, _, err := s.Get(t.Context(), "/a"); return err },
		"list":     func() error { _, err := s.List(t.Context(), "/", store.ListOptions{}); return err },
		"revision": func() error { _, err := s.Revision(t.Context()); return err },
		"watch":    func() error { _, err := w.Next(t.Context()); return err },
	}
	type end struct {
		name string
		err  error
	}
	ends := make(chan end)
	for name, call := range calls {
		go func() { ends <- end{name, call()} }()
	}
	for range calls {
		select {
		case e := <-ends:
			if !errors.Is(e.err, store.ErrUnavailable) {
				t.Errorf("%s ended with %v", e.name, e.err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("a call in progress did not end")
		}
	}
	eventually(t, "the store is unreachable", func() bool { return s.Check(t.Context()) != nil })

	// New calls fail at once, and a write does not reach the store.
	commits := inner.commits.Load()
	calls["commit"] = func() error { _, err := s.Commit(t.Context(), put("/b")); return err }
	calls["compact"] = func() error { return s.Compact(t.Context(), 1) }
	calls["watch"] = func() error { _, err := s.Watch(t.Context(), "/", 0); return err }
	for name, call := range calls {
		if err := call(); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if inner.commits.Load() != commits {
		t.Error("a refused write reached the store")
	}

	inner.cut.Store(false)
	eventually(t, "the store is reachable again", func() bool { return s.Check(t.Context()) == nil })
	if _, err := s.Commit(t.Context(), put("/b")); err != nil {
		t.Error(err)
	}
	if _, _, err := s.Get(t.Context(), "/b"); err != nil {
		t.Error(err)
	}
}

// The error of a caller's context, and errors of the store, are returned unchanged.
func TestErrorsAreTheStores(t *testing.T) {
	inner := &isolated{Store: memory.New()}
	defer inner.Close()
	s := New("test", inner)
	if _, _, err := s.Get(t.Context(), "/none"); !errors.Is(err, store.ErrNotFound) {
		t.Error(err)
	}
	inner.cut.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := s.Revision(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// A cancelled probe does not make the store unreachable.
func TestCancelledProbeChangesNothing(t *testing.T) {
	inner := &isolated{Store: memory.New()}
	defer inner.Close()
	s := New("test", inner)
	inner.cut.Store(true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.look(ctx) }() // hangs
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	inner.cut.Store(false)
	if _, err := s.Revision(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAsFindsWrappedStores(t *testing.T) {
	inner := &isolated{Store: memory.New()}
	defer inner.Close()
	s := New("test", inner)
	if got, ok := store.As[*isolated](s); !ok || got != inner {
		t.Error("the wrapped store was not found")
	}
	if got, ok := store.As[*Store](s); !ok || got != s {
		t.Error("the store itself was not found")
	}
	if _, ok := store.As[interface{ Leads() bool }](s); ok {
		t.Error("found a method that no store has")
	}
}

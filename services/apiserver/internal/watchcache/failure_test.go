package watchcache_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keelson.dev/services/apiserver/internal/envelope"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/memory"
	. "keelson.dev/services/apiserver/internal/watchcache"
)

// flaky is a store whose watches can be cut off and whose calls can be made to fail.
type flaky struct {
	*memory.Store
	mu      sync.Mutex
	cut     context.CancelCauseFunc
	ctx     context.Context
	down    atomic.Bool
	watches atomic.Int32 // begun, or refused while down
	why     error        // the error while down
}

var errDown = errors.New("the store is down")

func newFlaky(t testing.TB) *flaky {
	f := &flaky{Store: memory.New(), why: errDown}
	f.ctx, f.cut = context.WithCancelCause(context.Background())
	t.Cleanup(f.Close)
	t.Cleanup(func() { f.fail() })
	return f
}

// fail ends all watches with an error.
func (f *flaky) fail() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut(f.why)
	f.ctx, f.cut = context.WithCancelCause(context.Background())
}

func (f *flaky) Watch(ctx context.Context, prefix string, after store.Revision) (store.Watch, error) {
	f.mu.Lock() // cut off every watch that has been counted
	f.watches.Add(1)
	life := f.ctx
	f.mu.Unlock()
	if f.down.Load() {
		return nil, f.why
	}
	w, err := f.Store.Watch(ctx, prefix, after)
	return &flakyWatch{w, life}, err
}

func (f *flaky) List(ctx context.Context, prefix string, o store.ListOptions) (store.Page, error) {
	if f.down.Load() {
		return store.Page{}, f.why
	}
	return f.Store.List(ctx, prefix, o)
}

type flakyWatch struct {
	store.Watch
	life context.Context
}

func (w *flakyWatch) Next(ctx context.Context) (store.Batch, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(w.life, cancel)()
	b, err := w.Watch.Next(ctx)
	if err != nil && w.life.Err() != nil {
		return b, context.Cause(w.life)
	}
	return b, err
}

func (f *fixture) until(what string, cond func() bool) {
	f.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-f.ctx.Done():
			f.Fatal("timed out waiting until " + what)
		}
	}
}

func TestWatchResumesAfterACutWithoutGapsOrRepeats(t *testing.T) {
	s := newFlaky(t)
	f := start(t, s, Config{})
	w := f.watch(WatchOptions{After: f.fresh()})
	var want []string
	for i := range 20 {
		if i%4 == 1 {
			before := s.watches.Load()
			s.fail()
			defer f.until("it watches again", func() bool { return s.watches.Load() > before })
		}
		f.put(pod("a", fmt.Sprint(i), ""))
		want = append(want, fmt.Sprintf("added %d", i))
	}
	f.want(w, want...)
}

func TestReadersKeepTheLastStateWhileTheStoreIsDown(t *testing.T) {
	s := newFlaky(t)
	f := start(t, s, Config{})
	f.put(pod("a", "one", ""))
	f.fresh()
	w := f.watch(WatchOptions{Initial: true})
	f.want(w, "added one")
	before := s.watches.Load()
	s.down.Store(true)
	s.fail()
	f.until("it noticed", func() bool { return s.watches.Load() > before })
	rev := f.put(pod("a", "two", ""))
	f.put(pod("a", "one", "n1"))
	if got := names(f.Kind(pods).Snapshot(), "", ""); got != "one" {
		t.Fatalf("got %q", got)
	}
	ctx, cancel := context.WithTimeout(f.ctx, 20*time.Millisecond)
	defer cancel()
	if _, err := f.Fresh(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("consistent read from a cache that lags: %v", err)
	}
	// The missed events have been compacted: the cache must reload its state.
	if err := s.Compact(f.ctx, rev+1); err != nil {
		t.Fatal(err)
	}
	s.down.Store(false)
	f.fresh()
	if got := names(f.Kind(pods).Snapshot(), "", ""); got != "one two" {
		t.Fatalf("got %q", got)
	}
	if _, err := w.Next(f.ctx); !errors.Is(err, ErrReloaded) {
		t.Fatalf("watcher that missed events: %v", err)
	}
	var expired *ExpiredError
	if _, err := f.Kind(pods).Watch(WatchOptions{After: rev - 1}); !errors.As(err, &expired) {
		t.Fatalf("watch from before the reload: %v", err)
	}
	f.put(pod("a", "three", ""))
	f.want(f.watch(WatchOptions{After: rev + 1}), "added three")
}

// A member that is cut off from the others would keep its watchers waiting without their
// noticing.
func TestCurrentWatchersEndWhileTheStoreIsUnavailable(t *testing.T) {
	s := newFlaky(t)
	s.why = store.ErrUnavailable
	f := start(t, s, Config{})
	f.put(pod("a", "one", ""))
	after := f.fresh()
	current, patient := f.watch(WatchOptions{After: after, Current: true}), f.watch(WatchOptions{After: after})
	f.put(pod("a", "two", ""))
	f.fresh()
	s.down.Store(true)
	s.fail()
	f.want(current, "added two") // events from before the cut are delivered
	if _, err := current.Next(f.ctx); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("watch with Current: %v", err)
	}
	if _, err := f.Kind(pods).Watch(WatchOptions{After: after, Current: true}); !errors.Is(err, store.ErrUnavailable) {
		t.Fatalf("new watch with Current: %v", err)
	}
	f.put(pod("a", "three", ""))
	f.want(patient, "added two")
	s.down.Store(false)
	f.want(patient, "added three")
	f.want(f.watch(WatchOptions{After: after, Current: true}), "added two", "added three")
}

func TestRunFailsWhenTheStoreIsClosed(t *testing.T) {
	s := memory.New()
	c := New(Config{Store: s})
	ended := make(chan error, 1)
	go func() { ended <- c.Run(context.Background()) }()
	<-c.Ready()
	s.Close()
	if err := <-ended; !errors.Is(err, store.ErrClosed) {
		t.Fatal(err)
	}
	if err := c.WaitFor(context.Background(), 99); !errors.Is(err, ErrStopped) {
		t.Fatal(err)
	}
}

// TestWatchersSeeTheTruth runs random writes and random watchers that are cut off and resume,
// and checks that the state that each derives from its events is the same as a list returns.
func TestWatchersSeeTheTruth(t *testing.T) {
	s := newFlaky(t)
	f := start(t, s, Config{HistoryEvents: 1 << 20, BookmarkEvery: 5 * time.Millisecond})
	after := f.fresh()
	const writes = 600
	var wg sync.WaitGroup
	var end atomic.Int64
	wg.Go(func() {
		defer func() { end.CompareAndSwap(0, 1) }()
		rng := rand.New(rand.NewPCG(3, 4))
		for i := range writes {
			p := pod(fmt.Sprint("ns", rng.IntN(3)), fmt.Sprint("p", rng.IntN(10)), fmt.Sprint("n", rng.IntN(3)), "app", fmt.Sprint(rng.IntN(2)))
			if rng.IntN(4) == 0 {
				_, err := s.Commit(f.ctx, []store.Write{{Key: key(p), Expect: store.Any}})
				if err != nil {
					t.Error(err)
				}
			} else if b, err := envelope.EncodeObject(envelope.Value{APIVersion: "v1", Kind: "Pod"}, p); err != nil {
				t.Error(err)
			} else if _, err := s.Commit(f.ctx, []store.Write{{Key: key(p), Value: b, Expect: store.Any}}); err != nil {
				t.Error(err)
			}
			if i%150 == 149 {
				s.fail()
			}
		}
		rev, err := s.Revision(f.ctx)
		if err != nil {
			t.Error(err)
		}
		end.Store(int64(rev))
	})
	app1 := func(it *Item) bool { return it.Object().GetLabels()["app"] == "1" }
	options := []WatchOptions{
		{},
		{Prefix: "/registry/pods/ns1/"},
		{Field: "spec.nodeName", Value: "n1"},
		{Field: "spec.nodeName", Value: "n2", Prefix: "/registry/pods/ns0/"},
		{Key: "/registry/pods/ns2/p3"},
		{Filter: app1},
		{Filter: app1, Field: "spec.nodeName", Value: "n0"},
	}
	states := make([]map[string]store.Revision, len(options))
	for i, o := range options {
		wg.Go(func() {
			var err error
			if states[i], err = follow(f, o, after, &end, i); err != nil {
				t.Errorf("watcher %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if err := f.WaitFor(f.ctx, store.Revision(end.Load())); err != nil {
		t.Fatal(err)
	}
	for i, o := range options {
		want := map[string]store.Revision{}
		f.Kind(pods).Snapshot().Ascend("", "", func(it *Item) bool {
			if (o.Key == "" || it.Key == o.Key) && strings.HasPrefix(it.Key, o.Prefix) && (o.Filter == nil || o.Filter(it)) &&
				(o.Field == "" || pods.Fields[o.Field](it.Object()) == o.Value) {
				want[it.Key] = it.Revision
			}
			return true
		})
		if !maps.Equal(states[i], want) {
			t.Errorf("watcher %d derived\n%v\nwant\n%v", i, states[i], want)
		}
	}
}

// follow derives the state of a watch from the events of watches that it keeps closing and
// resuming.
func follow(f *fixture, o WatchOptions, after store.Revision, end *atomic.Int64, seed int) (map[string]store.Revision, error) {
	state := map[string]store.Revision{}
	rng := rand.New(rand.NewPCG(9, uint64(seed)))
	for {
		if last := store.Revision(end.Load()); last > 0 {
			// A last watch from the current revision returns what is missing.
			o.Bookmarks = true
			for seen := store.Revision(0); seen < last; {
				if f.ctx.Err() != nil {
					return nil, fmt.Errorf("the watch reached revision %d of %d", seen, last)
				}
				var err error
				if seen, err = collect(f.ctx, f, o, &after, state, last, 1<<30); err != nil {
					return nil, err
				}
			}
			return state, nil
		}
		ctx, cancel := context.WithTimeout(f.ctx, 10*time.Millisecond)
		_, err := collect(ctx, f, o, &after, state, 1<<62, 1+rng.IntN(20))
		cancel()
		if err != nil {
			return nil, err
		}
	}
}

// collect applies events to state: limit of them, or all until a bookmark confirms that there
// are no more up to revision upTo.
func collect(ctx context.Context, f *fixture, o WatchOptions, after *store.Revision, state map[string]store.Revision, upTo store.Revision, limit int) (seen store.Revision, err error) {
	o.After = *after
	w, err := f.Kind(pods).Watch(o)
	if err != nil {
		return 0, err
	}
	defer w.Close()
	for n := 0; n < limit && seen < upTo; {
		events, err := w.Next(ctx)
		if err != nil {
			return seen, nil
		}
		for _, ev := range events {
			if ev.Type == Bookmark {
				seen = ev.Revision
				continue
			}
			n++
			_, known := state[ev.Item.Key]
			switch {
			case ev.Revision <= *after:
				return seen, fmt.Errorf("event at %d after %d", ev.Revision, *after)
			case (ev.Type == Added) == known:
				return seen, fmt.Errorf("event %d at %d of %s, known %v", ev.Type, ev.Revision, ev.Item.Key, known)
			}
			*after = ev.Revision
			if ev.Type == Deleted {
				delete(state, ev.Item.Key)
			} else {
				state[ev.Item.Key] = ev.Revision
			}
		}
	}
	return seen, nil
}

package raft

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/storetest"
)

// running is a client that tries another member if one is stopped or has no leader, both of
// which mean that nothing was written.
type running struct {
	*cluster
	mu   sync.RWMutex // held for writing while a member is replaced
	next atomic.Int64
}

func (r *running) on(f func(*Store) error) {
	for {
		r.mu.RLock()
		s := r.members[r.names[r.next.Add(1)%int64(len(r.names))]].Store
		r.mu.RUnlock()
		if err := f(s); !errors.Is(err, store.ErrClosed) && !errors.Is(err, errNoLeader) {
			return
		}
	}
}

func (r *running) Get(ctx context.Context, key string) (e store.Entry, rev store.Revision, err error) {
	r.on(func(s *Store) error { e, rev, err = s.Get(ctx, key); return err })
	return e, rev, err
}

func (r *running) List(ctx context.Context, prefix string, o store.ListOptions) (p store.Page, err error) {
	r.on(func(s *Store) error { p, err = s.List(ctx, prefix, o); return err })
	return p, err
}

func (r *running) Commit(ctx context.Context, w []store.Write) (v []store.Verdict, err error) {
	r.on(func(s *Store) error {
		if v, err = s.Commit(ctx, w); err == nil {
			return v[0].Err
		}
		return err
	})
	return v, err
}

func (r *running) Watch(ctx context.Context, prefix string, after store.Revision) (w store.Watch, err error) {
	r.on(func(s *Store) error { w, err = s.Watch(ctx, prefix, after); return err })
	return w, err
}

func (r *running) Revision(ctx context.Context) (rev store.Revision, err error) {
	r.on(func(s *Store) error { rev, err = s.Revision(ctx); return err })
	return rev, err
}

func (r *running) Compact(ctx context.Context, rev store.Revision) (err error) {
	r.on(func(s *Store) error { err = s.Compact(ctx, rev); return err })
	return err
}

// TestHistoriesAreLinearizableWhileLeadersChange isolates, stops and restarts leaders while
// clients read and write through all members.
func TestHistoriesAreLinearizableWhileLeadersChange(t *testing.T) {
	r := &running{cluster: newCluster(t, 3, func(cfg *Config) { cfg.settleTime = 2 * time.Second })}
	r.leader()
	storetest.Linearizable(t, r, func() {
		for changes := range 8 {
			<-time.After(200 * time.Millisecond)
			leader, _ := r.leader()
			name := leader.cfg.Name
			r.mu.Lock()
			if changes%2 == 0 {
				r.isolate(name)
			}
			r.stop(name)
			r.start(name)
			r.mu.Unlock()
		}
	})
}

// TestLeadersChangeUnderLoad isolates and restarts leaders while writers write through all
// members and watches follow all of them.
func TestLeadersChangeUnderLoad(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.settleTime = time.Second })
	c.leader()
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	var mu sync.RWMutex // held for writing while a member is replaced
	member := func(i int) *Store {
		mu.RLock()
		defer mu.RUnlock()
		return c.members[c.names[i%3]].Store
	}
	start, err := member(0).Revision(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var acks sync.Mutex
	acked := map[store.Revision]string{}
	unknown := map[string]bool{}
	var stopped atomic.Bool
	var writers sync.WaitGroup
	for g := range 6 {
		writers.Go(func() {
			for i := 0; !stopped.Load(); i++ {
				value := fmt.Sprintf("%d.%d", g, i)
				v, err := member(g+i).Commit(ctx, []store.Write{{
					Key: fmt.Sprint("/", g), Value: []byte(value), Expect: store.Any,
					Settled: func(found []byte) bool { return string(found) == value },
				}})
				if err == nil {
					err = v[0].Err
				}
				acks.Lock()
				switch {
				case err == nil:
					acked[v[0].Revision] = value
				case errors.Is(err, store.ErrUnknownOutcome):
					unknown[value] = true
				case errors.Is(err, store.ErrConflict), errors.Is(err, store.ErrExists):
					t.Errorf("write %s: %v", value, err)
				}
				acks.Unlock()
			}
		})
	}
	var last atomic.Int64 // the revision that all watches must reach
	seen := make([]map[store.Revision]string, 3)
	var watchers sync.WaitGroup
	for i := range seen {
		seen[i] = map[store.Revision]string{}
		watchers.Go(func() {
			at := start
			for turn := i; last.Load() == 0 || int64(at) < last.Load(); turn++ {
				w, err := member(turn).Watch(ctx, "/", at)
				if err != nil {
					if errors.Is(err, store.ErrClosed) && ctx.Err() == nil {
						continue
					}
					t.Error(err)
					return
				}
				for last.Load() == 0 || int64(at) < last.Load() {
					next, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
					b, err := w.Next(next)
					cancel()
					if ctx.Err() != nil || errors.Is(err, store.ErrCompacted) {
						t.Errorf("watch at %d: %v", at, err)
						w.Close()
						return
					}
					if err != nil {
						break
					}
					for _, e := range b.Events {
						if e.Entry.ModRevision != at+1 {
							t.Errorf("watch %d: event at %d after %d", i, e.Entry.ModRevision, at)
						}
						at = e.Entry.ModRevision
						seen[i][at] = string(e.Entry.Value)
					}
				}
				w.Close()
			}
		})
	}
	for round := range 5 {
		leader, _ := c.leader()
		name := leader.cfg.Name
		before := leader.Status().Term
		if round%2 == 0 {
			c.isolate(name)
		}
		if round%2 == 0 {
			eventually(t, "another member leads", func() bool {
				for _, other := range c.names {
					if s := c.members[other]; other != name && s.Status().Term > before && s.Status().Leader == string(s.id) {
						return true
					}
				}
				return false
			})
		}
		mu.Lock()
		c.stop(name)
		c.start(name)
		mu.Unlock()
		acks.Lock()
		have := len(acked)
		acks.Unlock()
		eventually(t, "further writes are acknowledged", func() bool {
			acks.Lock()
			defer acks.Unlock()
			return len(acked) > have+200
		})
	}
	stopped.Store(true)
	writers.Wait()
	var final store.Revision
	eventually(t, "the revision can be read", func() bool { // a busy machine may hold another election
		final, err = member(0).Revision(ctx)
		return err == nil
	})
	last.Store(int64(final))
	watchers.Wait()
	t.Logf("%d acknowledged, %d unknown, %d revisions", len(acked), len(unknown), final-start)
	for i := range seen {
		for rev, value := range acked {
			if seen[i][rev] != value {
				t.Errorf("watch %d saw %q at revision %d, but %q was acknowledged", i, seen[i][rev], rev, value)
			}
		}
		known := map[string]bool{}
		for _, value := range acked {
			known[value] = true
		}
		times := map[string]int{}
		for rev, value := range seen[i] {
			if times[value]++; times[value] > 1 {
				t.Errorf("watch %d: %q was written twice, once at revision %d", i, value, rev)
			}
			if !known[value] && !unknown[value] {
				t.Errorf("watch %d: %q at revision %d was written, but reported as failed", i, value, rev)
			}
		}
	}
}

func TestALeaderThatIsCutOffServesNoStaleRead(t *testing.T) {
	c := newCluster(t, 3, nil)
	old, followers := c.leader()
	c.put(old, "/a", "1")
	c.isolate(old.cfg.Name)
	var wg sync.WaitGroup
	overwritten := make(chan struct{})
	defer wg.Wait()
	for range 4 {
		wg.Go(func() {
			<-overwritten
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			if e, _, err := old.Get(ctx, "/a"); err == nil {
				t.Errorf("the isolated leader returned the stale value %q", e.Value)
			}
			if rev, err := old.Revision(ctx); err == nil {
				t.Errorf("the isolated leader returned revision %d", rev)
			}
		})
	}
	func() {
		defer close(overwritten)
		c.put(followers[0], "/a", "2")
	}()
	wg.Wait()
	if e, _, err := followers[1].Get(context.Background(), "/a"); err != nil || string(e.Value) != "2" {
		t.Fatalf("%+v %v", e, err)
	}
	eventually(t, "the others are healthy", func() bool { return followers[1].Health() == nil })
	eventually(t, "the isolated leader reports that it is unhealthy", func() bool { return errors.Is(old.Health(), errNoLeader) })
	old.Close()
	if err := old.Health(); !errors.Is(err, store.ErrClosed) {
		t.Fatal(err)
	}
}

// filtered is a connection that can lose requests and responses.
type filtered struct {
	*grpc.ClientConn
	lose *atomic.Bool
	keep string
}

func (f *filtered) loses(method string) error {
	if f.lose.Load() && !strings.HasSuffix(method, f.keep) {
		return status.Error(codes.Unavailable, "lost")
	}
	return nil
}

func (f *filtered) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if err := f.loses(method); err != nil {
		return err
	}
	if err := f.ClientConn.Invoke(ctx, method, args, reply, opts...); err != nil {
		return err
	}
	return f.loses(method)
}

func (f *filtered) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := f.loses(method); err != nil {
		return nil, err
	}
	s, err := f.ClientConn.NewStream(ctx, desc, method, opts...)
	return &filteredStream{s, f, method}, err
}

type filteredStream struct {
	grpc.ClientStream
	by     *filtered
	method string
}

func (s *filteredStream) SendMsg(m any) error {
	if err := s.by.loses(s.method); err != nil {
		return err
	}
	return s.ClientStream.SendMsg(m)
}

func (s *filteredStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	return s.by.loses(s.method)
}

// A leader that did not run for a while still acts as one until it asks the others.
func TestConfirmDetectsALaterLeader(t *testing.T) {
	lose := map[string]*atomic.Bool{"a": {}, "b": {}, "c": {}}
	c := newCluster(t, 3, func(cfg *Config) {
		calm(cfg) // hold no election before the leader is isolated
		dial, name := cfg.Dial, cfg.Name
		cfg.Dial = func(member string) (grpc.ClientConnInterface, error) {
			conn, err := dial(member)
			if err != nil {
				return nil, err
			}
			return &filtered{conn.(*grpc.ClientConn), lose[name], "/ConfirmTerm"}, nil
		}
	})
	old, _ := c.leader()
	if _, err := old.Revision(context.Background()); err != nil {
		t.Fatal(err)
	}
	term := old.raft.CurrentTerm()
	if err := old.confirm(term); err != nil {
		t.Fatal(err)
	}
	name := old.cfg.Name
	lose[name].Store(true)
	c.members[name].down()
	eventually(t, "another member leads", func() bool {
		for _, other := range c.names {
			if s := c.members[other].Store; s != old && s.Status().Leader == string(s.id) {
				return true
			}
		}
		return false
	})
	eventually(t, "both others have moved on", func() bool {
		err := old.confirm(term)
		return err != nil && strings.Count(err.Error(), "is in term") == 2
	})
	if now := old.raft.CurrentTerm(); now != term {
		t.Fatalf("it has already seen term %d: the test proves nothing", now)
	}
}

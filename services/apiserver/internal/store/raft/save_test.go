package raft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

// saved returns a store's snapshot, as read back.
func saved(t testing.TB, s *Store) *Saved {
	t.Helper()
	snap, err := s.Snapshot(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	n, err := snap.WriteTo(&first)
	if _, again := snap.WriteTo(&second); err != nil || again != nil || n != int64(first.Len()) || !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Fatalf("%d of %d bytes, %v, %v: both writes must be the same", n, first.Len(), err, again)
	}
	out, err := ReadSaved(&first)
	if err != nil || out.Revision() != snap.Revision {
		t.Fatalf("revision %d, %v; want %d", out.Revision(), err, snap.Revision)
	}
	return out
}

func entriesOf(t testing.TB, s *Saved) map[string]store.Entry {
	t.Helper()
	out := map[string]store.Entry{}
	if err := s.Each(func(e store.Entry) error { out[e.Key] = e; return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

// hasEntries checks that a store contains these entries and no others.
func hasEntries(t testing.TB, s store.Store, rev store.Revision, want map[string]store.Entry) {
	t.Helper()
	page, err := s.List(context.Background(), "", store.ListOptions{Revision: rev})
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Entries) != len(want) {
		t.Fatalf("%d entries, want %d", len(page.Entries), len(want))
	}
	for _, e := range page.Entries {
		if w := want[e.Key]; string(w.Value) != string(e.Value) || w.ModRevision != e.ModRevision || w.CreateRevision != e.CreateRevision {
			t.Fatalf("%s is %+v, want %+v", e.Key, e, w)
		}
	}
}

func TestSnapshotShowsOneRevision(t *testing.T) {
	s := single(t, Config{})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				write := store.Write{Key: fmt.Sprintf("/load/%d/%d", w, i%50), Value: fmt.Appendf(nil, "%d", i), Expect: store.Any}
				if i%7 == 6 {
					write.Value = nil
				}
				if v, err := s.Commit(ctx, []store.Write{write}); ctx.Err() == nil && (err != nil || v[0].Err != nil && !errors.Is(v[0].Err, store.ErrNotFound)) {
					t.Errorf("write: %v %v", err, v)
					return
				}
			}
		})
	}
	for range 5 {
		acknowledged := put(t, s, "/acknowledged", "x")
		state := saved(t, s)
		if state.Revision() < acknowledged {
			t.Fatalf("revision %d, but %d was acknowledged", state.Revision(), acknowledged)
		}
		hasEntries(t, s, state.Revision(), entriesOf(t, state))
	}
}

func TestRestoredClusterContinues(t *testing.T) {
	t.Parallel()
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			old := newCluster(t, n, calm)
			leader, _ := old.leader()
			for i := range 200 {
				put(t, leader, fmt.Sprintf("/k/%d", i%80), fmt.Sprint(i))
			}
			v, err := leader.Commit(ctx, []store.Write{{Key: "/short", Value: []byte("x"), TTLSeconds: 1}})
			if err != nil || v[0].Err != nil {
				t.Fatal(err, v)
			}
			state := saved(t, leader)
			lost := put(t, leader, "/lost", "x")
			rev := state.Revision()
			want := entriesOf(t, state)
			state.Jump(jump)

			// The new cluster has the same names and addresses, but other disks.
			fresh := newStopped(t, old)
			for _, name := range old.names {
				if err := state.Restore(RestoreConfig{Name: name, Members: old.names, Token: "t1", Dir: fresh.members[name].dir, Log: quiet()}); err != nil {
					t.Fatal(err)
				}
			}
			fresh.start(fresh.names...)
			for _, name := range fresh.names {
				s := fresh.members[name].Store
				if now, err := s.Revision(ctx); err != nil || now < rev+jump {
					t.Fatalf("%s: revision %d, %v; want %d", name, now, err, rev+jump)
				}
				if got := len(s.voters()); got != n {
					t.Fatalf("%s: %d voters", name, got)
				}
				for _, from := range []store.Revision{1, rev, lost} {
					w, err := s.Watch(ctx, "/", from)
					if err == nil {
						_, err = w.Next(ctx)
						w.Close()
					}
					if !errors.Is(err, store.ErrCompacted) {
						t.Fatalf("%s: watch from %d: %v, want ErrCompacted", name, from, err)
					}
				}
			}
			leader, _ = fresh.leader()
			// An entry that was about to expire does so in the restored cluster.
			eventually(t, "/short expires", func() bool {
				_, _, err := leader.Get(ctx, "/short")
				return errors.Is(err, store.ErrNotFound)
			})
			delete(want, "/short")
			hasEntries(t, leader, 0, want)
			v, err = leader.Commit(ctx, []store.Write{{Key: "/k/3", Value: []byte("next"), Expect: want["/k/3"].ModRevision}})
			if err != nil || v[0].Err != nil || v[0].Revision <= rev+jump {
				t.Fatal(err, v)
			}
			for _, name := range fresh.names { // the data survives a restart
				fresh.stop(name)
			}
			fresh.start(fresh.names...)
			leader, _ = fresh.leader()
			holds(t, leader, map[string]string{"/k/3": "next"})
		})
	}
}

const jump = 1 << 40

// newStopped returns a stopped cluster with the same names and empty disks.
func newStopped(t testing.TB, of *cluster) *cluster {
	t.Helper()
	c := &cluster{TB: t, ca: of.ca, names: of.names, members: map[string]*clusterMember{}, change: of.change}
	for name, m := range of.members {
		of.stop(name)
		c.members[name] = &clusterMember{dir: filepath.Join(t.TempDir(), "raft"), addr: m.addr}
	}
	return c
}

func TestMemberThatWasNotRestoredCannotJoin(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader, _ := c.leader()
	put(t, leader, "/k", "old")
	state := saved(t, leader)
	state.Jump(jump)
	for _, name := range c.names {
		c.stop(name)
	}
	for _, name := range []string{"a", "b"} {
		c.empty(name)
		if err := state.Restore(RestoreConfig{Name: name, Members: c.names, Token: "t1", Dir: c.members[name].dir, Log: quiet()}); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := c.serve("c")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		s, err := Open(ctx, cfg)
		if err == nil {
			s.Close()
		}
		done <- err
	}()
	c.start("a", "b")
	put(t, c.members["a"].Store, "/k", "new")
	holds(t, c.members["b"].Store, map[string]string{"/k": "new"})
	select {
	case err := <-done:
		t.Fatalf("the member with its old disk: %v", err)
	default:
	}
	cancel()
	if err := <-done; err == nil {
		t.Fatal("the member with its old disk joined")
	}
	c.members["c"].down()
}

func TestEpochsEndWithARestore(t *testing.T) {
	s := NewSaved(100)
	s.EndEpochs(500, "/fence/a", "/fence/b")
	s.EndEpochs(400, "/fence/c")
	dir := t.TempDir()
	if err := s.Restore(RestoreConfig{Name: "a", Members: []string{"a"}, Token: "t", Dir: dir, Log: quiet()}); err != nil {
		t.Fatal(err)
	}
	m := single(t, Config{Dir: dir})
	for _, c := range []struct {
		fence string
		rev   int64
		want  raftv1.Outcome_Code
	}{
		{"/fence/a", 499, raftv1.Outcome_CODE_FENCED},
		{"/fence/b", 3, raftv1.Outcome_CODE_FENCED},
		{"/fence/c", 399, raftv1.Outcome_CODE_FENCED},
		{"/fence/a", 501, raftv1.Outcome_CODE_DONE},
		{"/fence/a", 500, raftv1.Outcome_CODE_FENCED},
		{"/fence/new", 3, raftv1.Outcome_CODE_DONE},
	} {
		op := &raftv1.Operation{Kind: &raftv1.Operation_Epoch{Epoch: &raftv1.Epoch{Key: c.fence, ModRevision: c.rev}}}
		res, err := m.proposals.do(context.Background(), []*raftv1.Operation{op})
		if err != nil || res.outcomes[0].code != c.want {
			t.Fatalf("%s at %d: %v, %v; want %v", c.fence, c.rev, res.outcomes, err, c.want)
		}
	}
}

func TestAddRefusesInvalidEntries(t *testing.T) {
	s := NewSaved(10)
	for _, e := range []store.Entry{
		{Key: "/a", Value: []byte("x"), ModRevision: 11, CreateRevision: 1},
		{Key: "/a", Value: []byte("x"), ModRevision: 5, CreateRevision: 6},
		{Key: "/a", Value: []byte("x"), ModRevision: 5},
		{Key: "/a", Value: make([]byte, maxValue+1), ModRevision: 5, CreateRevision: 5},
		{Key: "/a", ModRevision: 5, CreateRevision: 5},
	} {
		if err := s.Add(e, 0); err == nil {
			t.Errorf("added %s with revision %d, created at %d, value of %d bytes", e.Key, e.ModRevision, e.CreateRevision, len(e.Value))
		}
	}
	e := store.Entry{Key: "/a", Value: []byte("x"), ModRevision: 5, CreateRevision: 5}
	if err := s.Add(e, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Add(e, 0); err == nil {
		t.Error("the same key was added twice")
	}
}

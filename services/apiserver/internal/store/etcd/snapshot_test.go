package etcd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"keelson.dev/services/apiserver/internal/store"
)

// saveTo writes a snapshot and returns the path of the database in it.
func saveTo(t testing.TB, e *Embedded, dir string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	s, err := e.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	path := filepath.Join(dir, "saved.db")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.WriteTo(f)
	if err := errors.Join(err, f.Close()); err != nil || n != s.Size() {
		t.Fatalf("%d bytes of %d: %v", n, s.Size(), err)
	}
	status, err := snapshot.NewV3(zap.NewNop()).Status(path)
	if err != nil || store.Revision(status.Revision) < s.Revision {
		t.Fatalf("etcd's own tools read %+v, %v; want at least revision %d", status, err, s.Revision)
	}
	if err := os.Truncate(path, n-32); err != nil {
		t.Fatal(err)
	}
	return path
}

// entriesOf returns the entries of a file.
func entriesOf(t testing.TB, path string) (map[string]store.Entry, store.Revision) {
	t.Helper()
	f, err := OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	out := map[string]store.Entry{}
	last := store.Revision(0)
	err = f.Each(func(e FileEntry) error {
		if e.ModRevision < last {
			return fmt.Errorf("revision %d after %d", e.ModRevision, last)
		}
		last = e.ModRevision
		e.Value = slices.Clone(e.Value)
		out[e.Key] = e.Entry
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out, f.Revision()
}

func entriesAt(t testing.TB, s store.Store, rev store.Revision) map[string]store.Entry {
	t.Helper()
	page, err := s.List(context.Background(), "", store.ListOptions{Revision: rev})
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]store.Entry{}
	for _, e := range page.Entries {
		out[e.Key] = e
	}
	return out
}

func sameEntries(t testing.TB, what string, got, want map[string]store.Entry) {
	t.Helper()
	for key, w := range want {
		g, ok := got[key]
		if !ok || string(g.Value) != string(w.Value) || g.ModRevision != w.ModRevision || g.CreateRevision != w.CreateRevision {
			t.Fatalf("%s: %s is %q of %d, created at %d; want %q of %d, created at %d", what, key, g.Value, g.ModRevision, g.CreateRevision, w.Value, w.ModRevision, w.CreateRevision)
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			t.Fatalf("%s: %s should not exist", what, key)
		}
	}
}

// writing creates, changes and deletes keys until stop is called.
func writing(t testing.TB, s store.Store, workers int) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				write := store.Write{Key: fmt.Sprintf("/load/%d/%d", w, i%50), Value: fmt.Appendf(nil, "%d", i), Expect: store.Any}
				if i%7 == 6 {
					write.Value = nil
				}
				v, err := s.Commit(ctx, []store.Write{write})
				if ctx.Err() == nil && (err != nil || v[0].Err != nil && !errors.Is(v[0].Err, store.ErrNotFound)) {
					t.Errorf("write: %v %v", err, v)
					return
				}
			}
		})
	}
	return func() { cancel(); wg.Wait() }
}

func TestSnapshotShowsOneRevision(t *testing.T) {
	e := embedded(t, EmbeddedConfig{})
	stop := writing(t, e, 4)
	defer stop()
	dir := t.TempDir()
	var before store.Revision
	for range 5 {
		v, err := e.Commit(context.Background(), []store.Write{{Key: "/acknowledged", Value: []byte("x"), Expect: store.Any}})
		if err != nil || v[0].Err != nil {
			t.Fatal(err, v)
		}
		got, rev := entriesOf(t, saveTo(t, e, dir))
		if rev <= before || rev < v[0].Revision {
			t.Fatalf("revision %d after %d, with %d acknowledged", rev, before, v[0].Revision)
		}
		before = rev
		sameEntries(t, "snapshot", got, entriesAt(t, e, rev))
	}
}

func TestDefragmentFailsWhileASnapshotIsRead(t *testing.T) {
	e := embedded(t, EmbeddedConfig{})
	s, err := e.Snapshot(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Defragment(); err == nil {
		t.Error("defragmented while a snapshot was being read")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := e.Defragment(); err != nil {
		t.Error(err)
	}
}

// rewrite creates the file with which members start from a saved file.
func rewrite(t testing.TB, from string, rev store.Revision, keep func(FileEntry) bool) string {
	t.Helper()
	f, err := OpenFile(from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	to := from + ".made"
	err = f.Rewrite(to, rev, "/mark", []byte("restored"), func(e FileEntry) (bool, error) { return keep(e), nil })
	if err != nil {
		t.Fatal(err)
	}
	return to
}

const jump = 1 << 40

func TestMembersBeginWithTheSameState(t *testing.T) {
	for _, members := range [][]string{{"a"}, {"a", "b", "c"}} {
		t.Run(fmt.Sprint(len(members)), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			old := embedded(t, EmbeddedConfig{})
			stop := writing(t, old, 2)
			for i := range 300 {
				v, err := old.Commit(ctx, []store.Write{{Key: fmt.Sprintf("/k/%d", i%100), Value: fmt.Appendf(nil, "%d", i), Expect: store.Any, TTLSeconds: int64(i%2) * 3600}})
				if err != nil || v[0].Err != nil {
					t.Fatal(err, v)
				}
			}
			stop()
			later, err := old.Watch(ctx, "/k/", 0)
			if err != nil {
				t.Fatal(err)
			}
			later.Close()
			saved := saveTo(t, old, t.TempDir())
			want, rev := entriesOf(t, saved)
			// What is written after the save is not in the snapshot.
			lost, err := old.Commit(ctx, []store.Write{{Key: "/lost", Value: []byte("x")}})
			if err != nil || lost[0].Err != nil {
				t.Fatal(err, lost)
			}
			delete(want, "/k/7")
			made := rewrite(t, saved, rev+jump, func(e FileEntry) bool { return e.Key != "/k/7" })
			want["/mark"] = store.Entry{Key: "/mark", Value: []byte("restored"), ModRevision: rev + jump, CreateRevision: rev + jump}

			s := newSite(t, members...)
			for _, name := range members {
				err := Restore(RestoreConfig{Name: name, Members: members, Token: "t1", From: made, Dir: filepath.Join(s.dir, name), Log: s.log(name)})
				if err != nil {
					t.Fatal(err)
				}
			}
			if len(members) == 1 {
				e, err := Start(ctx, EmbeddedConfig{Name: "a", Dir: filepath.Join(s.dir, "a"), Log: quiet()})
				if err != nil {
					t.Fatal(err)
				}
				s.running["a"] = e
			} else {
				s.start(members...)
				all := s.members("a")
				if voters, learners := names(all); !slices.Equal(voters, members) || len(learners) > 0 {
					t.Fatalf("members are %+v", all)
				}
			}
			for _, name := range members {
				e := s.at(name)
				now, err := e.Revision(ctx)
				if err != nil || now < rev+jump {
					t.Fatalf("%s: revision %d, %v; want %d", name, now, err, rev+jump)
				}
				got := entriesAt(t, e, 0)
				maps.DeleteFunc(got, func(key string, _ store.Entry) bool { return key == "/new" })
				sameEntries(t, name, got, want)
				for _, from := range []store.Revision{1, rev, lost[0].Revision, rev + jump/2} {
					w, err := e.Watch(ctx, "/", from)
					if err == nil {
						_, err = w.Next(ctx)
						w.Close()
					}
					if !errors.Is(err, store.ErrCompacted) {
						t.Fatalf("%s: watch from %d: %v, want ErrCompacted", name, from, err)
					}
				}
				if _, err := e.List(ctx, "/", store.ListOptions{Revision: rev}); !errors.Is(err, store.ErrCompacted) {
					t.Fatalf("%s: list at %d: %v, want ErrCompacted", name, rev, err)
				}
				// A write may depend on a revision that was read before the restore.
				v, err := e.Commit(ctx, []store.Write{
					{Key: "/k/3", Value: []byte("next"), Expect: want["/k/3"].ModRevision},
					{Key: "/lost", Value: []byte("y"), Expect: lost[0].Revision},
				})
				if err != nil || v[0].Err != nil || v[0].Revision <= rev+jump || !errors.Is(v[1].Err, store.ErrNotFound) {
					t.Fatalf("%s: %v %+v", name, err, v)
				}
				e3 := want["/k/3"]
				e3.Value, e3.ModRevision = []byte("next"), v[0].Revision
				want["/k/3"] = e3
			}
			if len(members) > 1 { // the members form a cluster
				s.stop("a")
				s.put("b", "/new", "x")
				s.start("a")
				s.get("a", "/new", "x")
			}
		})
	}
}

func TestMemberWithItsOldDiskCannotJoinTheRestoredCluster(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	s.start("a", "b", "c")
	s.put("a", "/k", "old")
	saved := saveTo(t, s.at("b"), t.TempDir())
	s.stop("a", "b", "c")
	_, rev := entriesOf(t, saved)
	made := rewrite(t, saved, rev+jump, func(FileEntry) bool { return true })
	for _, name := range []string{"a", "b"} {
		if err := os.Rename(filepath.Join(s.dir, name), filepath.Join(s.dir, "old-"+name)); err != nil {
			t.Fatal(err)
		}
		err := Restore(RestoreConfig{Name: name, Members: []string{"a", "b", "c"}, Token: "t1", From: made, Dir: filepath.Join(s.dir, name), Log: s.log(name)})
		if err != nil {
			t.Fatal(err)
		}
	}
	// c still has its old disk: it neither joins nor disturbs the others.
	late, end := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		e, err := s.begin(late, "c")
		if err == nil {
			err = fmt.Errorf("started with revision %d", mustRevision(t, e))
		}
		done <- err
	}()
	s.start("a", "b")
	s.put("a", "/k", "new")
	s.get("b", "/k", "new")
	select {
	case err := <-done:
		t.Fatalf("c with its old disk: %v", err)
	default:
	}
	end()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("c with its old disk: %v", err)
	}
}

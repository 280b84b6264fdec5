package raft

import (
	"slices"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
)

func newLog(t *testing.T, entries uint64) *logStore {
	t.Helper()
	l, err := openLog(t.TempDir(), bbolt.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.db.Close() })
	var batch []*hraft.Log
	for i := uint64(1); i <= entries; i++ {
		batch = append(batch, &hraft.Log{Index: i, Term: 1, Data: make([]byte, 100)})
	}
	for b := range slices.Chunk(batch, 1000) {
		if err := l.StoreLogs(b); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func TestDeleteRange(t *testing.T) {
	const entries = 3*deletedAtOnce + 7
	for _, c := range []struct {
		name                  string
		from, to, first, last uint64
	}{
		{"the beginning", 1, 2*deletedAtOnce + 3, 2*deletedAtOnce + 4, entries},
		{"one", 1, 1, 2, entries},
		{"the end", 10, entries, 1, 9},
		{"beyond both ends", 0, entries + 5, 0, 0},
		{"missing entries", entries + 1, entries + 5, 1, entries},
	} {
		l := newLog(t, entries)
		if err := l.DeleteRange(c.from, c.to); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		first, _ := l.FirstIndex()
		last, _ := l.LastIndex()
		if first != c.first || last != c.last {
			t.Errorf("%s: entries %d to %d are left, want %d to %d", c.name, first, last, c.first, c.last)
		}
		for i := first; i != 0 && i <= last; i++ {
			if err := l.GetLog(i, new(hraft.Log)); err != nil {
				t.Fatalf("%s: entry %d: %v", c.name, i, err)
			}
		}
	}
	l := newLog(t, 0)
	if err := l.DeleteRange(1, 5); err != nil {
		t.Errorf("delete from an empty log: %v", err)
	}
}

// A snapshot after a busy minute deletes tens of thousands of entries. That must not take an
// order of magnitude longer than writing them.
func TestDeletingIsNoSlowerThanWriting(t *testing.T) {
	const entries = 64_000
	// Take the best of several, because a busy machine may stall during one.
	var times float64
	for range 5 {
		began := time.Now()
		l := newLog(t, entries)
		wrote := time.Since(began)
		began = time.Now()
		if err := l.DeleteRange(1, entries-10); err != nil {
			t.Fatal(err)
		}
		deleted := time.Since(began)
		t.Logf("%d entries : written in %s, deleted in %s", entries, wrote, deleted)
		if times = float64(deleted) / float64(wrote); times <= 5 {
			return
		}
	}
	t.Errorf("deleting took %.1f times as long as writing", times)
}

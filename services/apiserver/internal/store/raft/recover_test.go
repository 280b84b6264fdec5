package raft

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"keelson.dev/services/apiserver/internal/store"
)

// TestRecoverFromOneSurvivor loses two of three members permanently. The third one continues
// alone with all that it had, at later revisions, and belongs to another cluster than the lost ones.
func TestRecoverFromOneSurvivor(t *testing.T) {
	c := newCluster(t, 3, nil)
	want := map[string]string{}
	for i := range 100 {
		key := fmt.Sprint("/", i)
		want[key] = key
		leader, _ := c.leader()
		c.put(leader, key, key)
		if i == 50 {
			if err := c.members["c"].linearize(context.Background()); err != nil { // otherwise it may not have anything yet
				t.Fatal(err)
			}
			if err := c.members["c"].raft.Snapshot().Error(); err != nil {
				t.Fatal(err)
			}
		}
	}
	survivor := c.members["c"]
	before, err := survivor.Revision(context.Background()) // a linearizable read: it has everything
	if err != nil {
		t.Fatal(err)
	}
	oldID := survivor.id
	for _, name := range c.names {
		c.stop(name)
	}
	cfg := survivor.cfg
	cfg.Members, cfg.Service = []string{"c"}, nil
	for range 2 { // the second time, as after an interruption
		rev, err := Recover(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if rev < before+recoverySkip {
			t.Fatalf("recovered at revision %d, but the store was at %d", rev, before)
		}
	}
	alone, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer alone.Close()
	holds(t, alone, want)
	if alone.id == oldID {
		t.Errorf("the member still has the id %s", oldID)
	}
	if v := alone.voters(); len(v) != 1 || v[0] != alone.id {
		t.Errorf("voters are %v", v)
	}
	w, err := alone.Watch(context.Background(), "/", before)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Next(context.Background()); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("watch from before the recovery: %v", err)
	}
	c.put(alone, "/after", "x")
}

// A directory without a member's data is not an error: the store starts empty.
func TestRecoverWithoutData(t *testing.T) {
	if rev, err := Recover(Config{Name: "a", Dir: t.TempDir()}); rev != 0 || err != nil {
		t.Fatal(rev, err)
	}
}

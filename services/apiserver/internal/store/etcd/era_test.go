package etcd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// recoveredSite is a site of three where b and c were given up, and a goes on alone once
// it is started.
func recoveredSite(t *testing.T) (*site, context.Context) {
	s := newSite(t, "a", "b", "c")
	s.start("a", "b", "c")
	s.put("a", "/k", "old")
	s.stop("a", "b", "c")
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	t.Cleanup(cancel)
	if _, err := Recover(ctx, s.config("a", s.addresses["a"])); err != nil {
		t.Fatal(err)
	}
	return s, ctx
}

// A member that was given up and comes back with its disk ends, also when whoever
// told it so is away by then.
func TestWhoWasGivenUpDoesNotStart(t *testing.T) {
	s, ctx := recoveredSite(t)
	s.start("a")
	// It may be told late, when its etcd runs already and waits for the others.
	late := s.config("c", s.addresses["c"])
	late.Peers.askTime = time.Nanosecond
	if _, err := Start(ctx, late); !errors.Is(err, errOutlived) {
		t.Fatalf("c started: %v", err)
	}
	if _, err := s.begin(ctx, "b"); !errors.Is(err, errOutlived) {
		t.Fatalf("b started: %v", err)
	}
	s.stop("a")
	if _, err := s.begin(ctx, "b"); !errors.Is(err, errOutlived) {
		t.Fatalf("b started when a was away: %v", err)
	}
}

// Two that were given up are a majority of the old cluster: when they run already,
// the recovered one ends them. With empty disks they are let in.
func TestWhoWasGivenUpEnds(t *testing.T) {
	s, ctx := recoveredSite(t)
	s.start("b", "c")
	s.put("b", "/k", "of the old cluster")
	s.start("a")
	for _, n := range []string{"b", "c"} {
		select {
		case <-s.at(n).Stopped():
		case <-ctx.Done():
			t.Fatalf("%s runs on", n)
		}
	}
	s.get("a", "/k", "old")
	s.stop("b", "c")
	for _, n := range []string{"b", "c"} {
		if err := os.RemoveAll(filepath.Join(s.dir, n)); err != nil {
			t.Fatal(err)
		}
		there := s.arrive(ctx, n)
		if err := s.at("a").Add(ctx, n); err != nil {
			t.Fatal(err)
		}
		if err := <-there; err != nil {
			t.Fatal(err)
		}
	}
	s.voters("b", "a", "b", "c")
	s.get("c", "/k", "old")
	// They are of the new era now: all stop and start as one cluster.
	s.stop("a", "b", "c")
	s.start("a", "b", "c")
	s.get("b", "/k", "old")
}

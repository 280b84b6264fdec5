package etcd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// recoveredSite returns a site of three members of which b and c were given up as lost. a
// continues alone once it is started.
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

// A member that was given up as lost and comes back with its disk stops, even if the member
// that announced the recovery to it is away by then.
func TestGivenUpMemberDoesNotStart(t *testing.T) {
	s, ctx := recoveredSite(t)
	s.start("a")
	// It may learn of the recovery late, when its etcd is already running and waits for the
	// others.
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
		t.Fatalf("b started while a was away: %v", err)
	}
}

// Two members that were given up are a majority of the old cluster. If they are already
// running, the recovered member stops them. With empty disks they may join.
func TestGivenUpMembersStop(t *testing.T) {
	s, ctx := recoveredSite(t)
	s.start("b", "c")
	s.put("b", "/k", "of the old cluster")
	s.start("a")
	for _, n := range []string{"b", "c"} {
		select {
		case <-s.at(n).Stopped():
		case <-ctx.Done():
			t.Fatalf("%s is still running", n)
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
	// Now they belong to the new era: all members stop and start as one cluster.
	s.stop("a", "b", "c")
	s.start("a", "b", "c")
	s.get("b", "/k", "old")
}

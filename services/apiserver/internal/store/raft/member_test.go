package raft

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

// holds checks that a store contains these entries.
func holds(t testing.TB, s store.Store, want map[string]string) {
	t.Helper()
	page, err := s.List(context.Background(), "/", store.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range page.Entries {
		got[e.Key] = string(e.Value)
	}
	for key, value := range want {
		if got[key] != value {
			t.Fatalf("%s is %q, but %q was acknowledged (%d of %d entries)", key, got[key], value, len(got), len(want))
		}
	}
}

func TestEmptiedDiskJoinsUnderANewID(t *testing.T) {
	c := newCluster(t, 3, nil)
	want := map[string]string{}
	write := func(s store.Store, n int) {
		for range n {
			key := fmt.Sprint("/", len(want))
			want[key] = key
			c.put(s, key, key)
		}
	}
	write(c.members["b"], 50)
	// This includes the founder, which must not found another cluster.
	for _, name := range []string{"b", "a"} {
		before := c.members[name].id
		c.stop(name)
		c.empty(name)
		leader, _ := c.leader()
		write(leader, 50)
		c.start(name)
		if c.members[name].id == before {
			t.Fatalf("%s kept its id with an empty disk", before)
		}
		eventually(t, name+" votes again", func() bool {
			leader, _ := c.leader()
			return slices.Equal(sorted(leader.voters()), sorted(c.ids()))
		})
		write(c.members[name], 10)
		holds(t, c.members[name], want)
	}
	// What they hold counts: together they have everything.
	c.stop("c")
	write(c.members["b"], 10)
	holds(t, c.members["a"], want)
}

func (c *cluster) ids() (out []string) {
	for _, name := range c.names {
		out = append(out, string(c.members[name].id))
	}
	return out
}

func sorted[S ~string](in []S) (out []string) {
	for _, s := range in {
		out = append(out, string(s))
	}
	slices.Sort(out)
	return out
}

// Snapshots without the log have no votes either.
func TestADiskThatLostItsLogAloneIsAStranger(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader, followers := c.leader()
	want := map[string]string{"/a": "x"}
	c.put(leader, "/a", "x")
	lost := followers[0]
	if err := lost.linearize(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := lost.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	name, before := lost.cfg.Name, lost.id
	c.stop(name)
	if err := os.Remove(filepath.Join(c.members[name].dir, "log.db")); err != nil {
		t.Fatal(err)
	}
	c.start(name)
	if c.members[name].id == before {
		t.Fatalf("%s lost its votes, but kept its id", before)
	}
	eventually(t, "it votes again", func() bool {
		leader, _ := c.leader()
		return slices.Equal(sorted(leader.voters()), sorted(c.ids()))
	})
	holds(t, c.members[name], want)
}

// Two of three members have a write. One of them is emptied, the other is down: the third must
// not be elected with the vote of the emptied one.
func TestEmptiedDiskDoesNotElectAMemberThatLacksAWrite(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader, followers := c.leader()
	stale, emptied := followers[0].cfg.Name, followers[1].cfg.Name
	c.stop(stale)
	want := map[string]string{}
	for i := range 20 {
		key := fmt.Sprint("/", i)
		want[key] = key
		c.put(leader, key, key)
	}
	keeps := leader.cfg.Name
	old := string(c.members[emptied].id)
	c.stop(emptied)
	c.stop(keeps)
	c.empty(emptied)
	opened := make(chan error, 2)
	for _, name := range []string{stale, emptied} {
		cfg, err := c.serve(name)
		if err != nil {
			t.Fatal(err)
		}
		go func() { opened <- c.join(name, cfg) }()
	}
	// The stale member requests votes without success.
	var from *Store
	eventually(t, "both members are running", func() bool {
		from = c.members[stale].service.store.Load()
		return from != nil && c.members[emptied].service.store.Load() != nil
	})
	deadline := time.After(3 * time.Second)
	for waiting := true; waiting; {
		select {
		case err := <-opened:
			t.Fatalf("the store opened without the member that has the writes: %v", err)
		case <-deadline:
			waiting = false
		case <-time.After(10 * time.Millisecond):
			if l := from.Status().Leader; l != "" {
				t.Fatalf("%s was elected", l)
			}
		}
	}
	p, err := from.transport.member(emptied)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a vote requested under the old id is refused", func() bool {
		_, err := p.RequestVote(context.Background(), &raftv1.RequestVoteRequest{
			Header: &raftv1.Header{Target: old, ProtocolVersion: 3, Id: []byte(from.id), Address: []byte(from.id)},
			Term:   1 << 20, LastLogIndex: 1 << 20, LastLogTerm: 1 << 20,
		})
		if code := status.Code(err); code != codes.FailedPrecondition && code != codes.Unavailable {
			t.Fatalf("vote requested under the old id: %v", err)
		}
		return status.Code(err) == codes.FailedPrecondition
	})
	c.start(keeps)
	for range 2 {
		if err := <-opened; err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range c.names {
		holds(t, c.members[name], want)
	}
}

// A member may know a membership that the leader does not know: one that was never committed,
// or that has changed since.
func TestRemovedMemberJoinsAgain(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader, followers := c.leader()
	want := map[string]string{"/a": "x"}
	c.put(leader, "/a", "x")
	gone := followers[0]
	eventually(t, "it is removed", func() bool {
		leader, _ := c.leader()
		return leader.raft.RemoveServer(gone.id, 0, time.Second).Error() == nil
	})
	eventually(t, "it votes again", func() bool {
		leader, _ := c.leader()
		return slices.Equal(sorted(leader.voters()), sorted(c.ids()))
	})
	holds(t, gone, want)
}

// A leader hands over while it keeps running. A single member cannot hand over.
func TestHandOver(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader, _ := c.leader()
	eventually(t, "another member leads", func() bool {
		if err := leader.HandOver(); err != nil {
			t.Logf("%v", err) // the others held no election in time
			return false
		}
		now, _ := c.leader()
		return now != nil && now != leader
	})
	c.put(leader, "/k", "v")
	alone := newCluster(t, 1, nil)
	only, _ := alone.leader()
	if err := only.HandOver(); err != nil || !only.Leads() {
		t.Errorf("error %v; still leads: %t", err, only.Leads())
	}
}

func TestLateMemberFoundsNoCluster(t *testing.T) {
	c := newCluster(t, 3, nil)
	// A single member grows to three, the first of which is new.
	grown := &cluster{TB: t, ca: c.ca, names: []string{"b"}, members: map[string]*clusterMember{}}
	for name, m := range c.members {
		c.stop(name)
		c.empty(name)
		grown.members[name] = &clusterMember{dir: m.dir, addr: m.addr}
	}
	grown.start("b")
	want := map[string]string{"/kept": "x"}
	grown.put(grown.members["b"], "/kept", "x")
	grown.stop("b")
	grown.names = []string{"a", "b", "c"}
	grown.start("a", "b", "c")
	for _, name := range grown.names {
		holds(t, grown.members[name], want)
	}
	eventually(t, "all three have a vote", func() bool {
		leader, _ := grown.leader()
		return len(leader.voters()) == 3
	})
}

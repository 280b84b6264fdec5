package raft

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

// TestNothingExpiresEarly simulates leaders whose clocks start anywhere, that pause, lose
// entries and replace each other, against real time.
func TestNothingExpiresEarly(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(1000, 1<<20)
		real, term, index := int64(0), uint64(1), uint64(0)
		offset := rapid.Int64Range(0, 1<<40).Draw(t, "offset")
		type lease struct{ acked, ttl int64 }
		leases := map[string]lease{}
		gone := map[string]bool{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			real += rapid.SampledFrom([]int64{0, 1, 10, 500, 999, 1000, 5000, 40_000}).Draw(t, "pause")
			if rapid.IntRange(0, 5).Draw(t, "event") == 0 { // another leader, or the same one again
				term++
				offset = rapid.Int64Range(0, 1<<40).Draw(t, "offset")
			}
			c := &raftv1.Command{Format: format, ClockMs: real + offset}
			if rapid.Bool().Draw(t, "write") {
				key, ttl := fmt.Sprint("/", len(leases)%5), rapid.Int64Range(1, 60).Draw(t, "ttl")
				c.Operations = append(c.Operations, write(key, "x", store.Any, func(w *raftv1.Write) { w.TtlSeconds = ttl }))
				// The owner receives the acknowledgement a little later.
				leases[key] = lease{real + rapid.SampledFrom([]int64{0, 7, 999}).Draw(t, "latency"), ttl}
				delete(gone, key)
			}
			index++
			m.command(c, index, term)
			for key, l := range leases {
				if m.get(key) == nil && !gone[key] {
					gone[key] = true
					if real < l.acked+l.ttl*1000 {
						t.Fatalf("%s was acknowledged at %d for %d s and expired at %d", key, l.acked, l.ttl, real)
					}
				}
			}
		}
		// Eventually everything expires, under one leader that does not pause.
		for range 200 {
			real += 1000
			index++
			m.command(&raftv1.Command{Format: format, ClockMs: real + offset}, index, term)
		}
		if m.keys.Len() != 0 || m.expiring.Len() != 0 {
			t.Fatalf("%d entries never expired", m.keys.Len())
		}
	})
}

// TestShortTermsDoNotStopTime has an idle store whose terms are all shorter than the time to
// live of its only entry. Each leader looks every half second whether to write its clock.
func TestShortTermsDoNotStopTime(t *testing.T) {
	const ttl, step = 15, int64(500)
	for _, length := range []int64{2_000, 5_000, 8_000, 14_000} {
		m := newMachine(1000, 1<<20)
		real, index := int64(0), uint64(1)
		command := func(term uint64, ops ...*raftv1.Operation) {
			index++
			m.command(&raftv1.Command{Format: format, ClockMs: real, Operations: ops}, index, term)
		}
		command(1, write("/t/a", "x", store.Any, func(w *raftv1.Write) { w.TtlSeconds = ttl }))
		for term := uint64(2); m.keys.Len() > 0; term++ {
			if real > 4*ttl*1000 {
				t.Errorf("terms of %d ms: not expired after %d ms", length, real)
				break
			}
			command(term)
			for began, last := real, real; real < began+length; {
				real += step
				if ticks(real-last, real-began) {
					last = real
					command(term)
				}
			}
		}
	}
}

// TestStableTermTicksSeldom counts what an idle leader writes in an hour.
func TestStableTermTicksSeldom(t *testing.T) {
	n := 0
	for now, last := int64(0), int64(0); now < 3_600_000; now += 500 {
		if ticks(now-last, now) && now > last {
			n++
			last = now
		}
	}
	if n > 380 {
		t.Errorf("an idle leader writes its clock %d times an hour", n)
	}
}

func write(key, value string, expect store.Revision, more ...func(*raftv1.Write)) *raftv1.Operation {
	w := &raftv1.Write{Key: key, Value: []byte(value), Expect: int64(expect)}
	for _, f := range more {
		f(w)
	}
	return &raftv1.Operation{Kind: &raftv1.Operation_Write{Write: w}}
}

func TestExpiryAcrossLeaders(t *testing.T) {
	t.Parallel()
	// The log's time stands still between leaders: on a busy machine, one that leads for less than
	// the TTL would never see the end of it.
	c := newCluster(t, 3, calm)
	leader, followers := c.leader()
	w, err := followers[0].Watch(context.Background(), "/t/", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	const ttl = 3
	v, err := leader.Commit(context.Background(), []store.Write{{Key: "/t/gone", Value: []byte("x"), TTLSeconds: ttl}})
	if err != nil || v[0].Err != nil {
		t.Fatal(err, v)
	}
	acked := time.Now()
	c.isolate(leader.cfg.Name)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	for {
		b, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if b.Events[len(b.Events)-1].Type == store.Deleted {
			break
		}
	}
	if lived := time.Since(acked); lived < ttl*time.Second {
		t.Fatalf("expired already after %s", lived)
	}
	for _, s := range followers {
		if _, _, err := s.Get(ctx, "/t/gone"); !errors.Is(err, store.ErrNotFound) {
			t.Fatal(err)
		}
	}
}

func TestBoundsEvictTheOldest(t *testing.T) {
	const entries, bytes = 50, 4000
	s := single(t, Config{Bounds: []Bound{{Prefix: "/events/", Entries: entries}, {Prefix: "/large/", Bytes: bytes}}})
	ctx := context.Background()
	put(t, s, "/other", "x")
	eventually(t, "the bounds are set", func() bool {
		s.machine.mu.RLock()
		defer s.machine.mu.RUnlock()
		return len(s.machine.bounds) == 2
	})
	w, err := s.Watch(ctx, "/events/", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var last store.Revision
	for i := range 120 {
		last = put(t, s, fmt.Sprintf("/events/%03d", i%100), fmt.Sprint(i))
		put(t, s, fmt.Sprintf("/large/%03d", i), string(make([]byte, 100)))
		put(t, s, fmt.Sprintf("/other/%03d", i), "x")
	}
	page, err := s.List(ctx, "/events/", store.ListOptions{})
	if err != nil || len(page.Entries) != entries {
		t.Fatalf("%d entries, %v", len(page.Entries), err)
	}
	for _, e := range page.Entries { // the last 50 writes: 70 to 99, and 0 to 19 the second time
		if n := e.Key[len("/events/"):]; n >= "020" && n < "070" {
			t.Fatalf("%s is still there", e.Key)
		}
	}
	deleted := map[string]bool{}
	for seen := store.Revision(0); seen < last; {
		b, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range b.Events {
			if e.Type == store.Deleted {
				deleted[e.Entry.Key] = true
			} else {
				delete(deleted, e.Entry.Key)
			}
		}
		seen = b.Revision
	}
	if len(deleted) != 50 {
		t.Fatalf("the watch saw %d deletions, want 50", len(deleted))
	}
	page, err = s.List(ctx, "/large/", store.ListOptions{})
	if n := len(page.Entries); err != nil || n*110 > bytes || (n+1)*110 < bytes {
		t.Fatalf("%d entries of 110 bytes, %v", n, err)
	}
	// A single entry that is larger than the bound stays.
	put(t, s, "/large/x", string(make([]byte, 2*bytes)))
	if page, err = s.List(ctx, "/large/", store.ListOptions{}); err != nil || len(page.Entries) != 1 {
		t.Fatalf("%d entries, %v", len(page.Entries), err)
	}
	if page, err = s.List(ctx, "/other", store.ListOptions{}); err != nil || len(page.Entries) != 121 {
		t.Fatalf("%d entries without a bound, %v", len(page.Entries), err)
	}
}

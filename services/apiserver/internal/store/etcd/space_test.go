package etcd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"keelson.dev/services/apiserver/internal/store"
	inmemory "keelson.dev/services/apiserver/internal/store/memory"
)

// quick is a retention whose checks follow each other quickly.
var quick = Retention{Age: time.Minute, Least: 20 * time.Millisecond, Worth: 50, Most: 200, Check: 20 * time.Millisecond}

// maintained keeps the store until the test ends.
func maintained(t testing.TB, e *Embedded) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Maintain(ctx, quick) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatal("waited in vain until " + what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// value returns bytes that cannot be compressed.
func value(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

func write(ctx context.Context, s store.Store, key string, v []byte) error {
	verdicts, err := s.Commit(ctx, []store.Write{{Key: key, Value: v, Expect: store.Any}})
	if err != nil {
		return err
	}
	return verdicts[0].Err
}

// fill writes until the store is full, and returns the keys.
func fill(t testing.TB, e *Embedded, size int) (keys []string) {
	t.Helper()
	v := value(size)
	for i := 0; ; i++ {
		key := fmt.Sprintf("/registry/fill/%05d", i)
		err := write(t.Context(), e, key, v)
		if errors.Is(err, store.ErrNoSpace) {
			return keys
		}
		if err != nil {
			t.Fatal(err)
		}
		if keys = append(keys, key); len(keys) > 10_000 {
			t.Fatal("the quota does not hold")
		}
	}
}

// A store that is full says so, serves reads and deletions, and recovers by itself, in the
// same process, once objects have been deleted.
func TestAFullStoreRecovers(t *testing.T) {
	e := embedded(t, EmbeddedConfig{QuotaBytes: 64 << 20})
	maintained(t, e)
	keys := fill(t, e, 512<<10)
	until(t, "the alarm is raised", func() bool { return e.Space().Full })
	if s := e.Space(); !strings.HasPrefix(s.String(), "warning: the store is full (") || s.Quota != 64<<20 {
		t.Fatalf("%s: %+v", s, s)
	}
	// Nothing can be returned yet, and the alarm stays.
	if err := write(t.Context(), e, "/registry/fill/more", value(512<<10)); !errors.Is(err, store.ErrNoSpace) {
		t.Fatalf("a write into the full store: %v", err)
	}
	if _, _, err := e.Get(t.Context(), keys[0]); err != nil {
		t.Fatalf("a read: %v", err)
	}
	for _, key := range keys[:len(keys)-20] {
		if err := write(t.Context(), e, key, nil); err != nil {
			t.Fatalf("a deletion in the full store: %v", err)
		}
	}
	until(t, "the store accepts writes", func() bool { return write(t.Context(), e, "/registry/fill/more", []byte("x")) == nil })
	if s := e.Space(); s.Full || strings.HasPrefix(s.String(), "warning") || s.Size > s.Quota/8*7 {
		t.Fatalf("%s: %+v", s, s)
	}
	if _, _, err := e.Get(t.Context(), keys[len(keys)-1]); err != nil {
		t.Fatalf("what was not deleted: %v", err)
	}
}

// Overwriting the same objects for ever does not fill the store: history is compacted, and
// its space used again.
func TestTheFileStaysBoundedUnderChurn(t *testing.T) {
	e := embedded(t, EmbeddedConfig{QuotaBytes: 64 << 20})
	maintained(t, e)
	v := value(64 << 10)
	most := int64(0)
	for i := range 4000 { // 250 MiB through a quota of 64
		err := write(t.Context(), e, fmt.Sprint("/registry/churn/", i%20), v)
		if errors.Is(err, store.ErrNoSpace) {
			// Faster than compactions: wait for the space, as a client would.
			until(t, "there is space", func() bool { return write(t.Context(), e, "/registry/churn/0", v) == nil })
		} else if err != nil {
			t.Fatal(err)
		}
		most = max(most, e.Space().Size)
	}
	if most > 128<<20 { // see Space for what may exceed the quota
		t.Fatalf("the file grew to %d bytes", most)
	}
	until(t, "the store is calm", func() bool { return !e.Space().Full && !e.Space().tight() })
}

// Members defragment one at a time, and never the leader.
func TestMembersReturnSpaceInTurn(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	transient := inmemory.New()
	t.Cleanup(transient.Close)
	s.quota = 32 << 20
	s.start("a", "b", "c")
	members := map[string]*Embedded{"a": s.at("a"), "b": s.at("b"), "c": s.at("c")}
	var mu sync.Mutex
	busy, together, led := 0, 0, 0
	for _, e := range members {
		e.defragmenting = func(begins bool) {
			mu.Lock()
			defer mu.Unlock()
			if !begins {
				busy--
				return
			}
			if busy++; busy > 1 {
				together++
			}
			if e.Leads() {
				led++
			}
		}
		e.Coordinate(transient)
	}
	for _, e := range members {
		maintained(t, e)
	}
	keys := fill(t, members["a"], 512<<10)
	until(t, "all know that the store is full", func() bool {
		return members["a"].Space().Full && members["b"].Space().Full && members["c"].Space().Full
	})
	for _, key := range keys[:len(keys)-10] {
		if err := write(t.Context(), members["b"], key, nil); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the store accepts writes", func() bool { return write(t.Context(), members["c"], "/registry/fill/more", []byte("x")) == nil })
	until(t, "all files are small again", func() bool {
		return !slices.ContainsFunc([]string{"a", "b", "c"}, func(n string) bool { return members[n].Space().tight() })
	})
	mu.Lock()
	defer mu.Unlock()
	if together != 0 || led != 0 {
		t.Fatalf("%d defragmentations while another ran, %d of the leader", together, led)
	}
}

func TestSpace(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		s          Space
		worthwhile bool
		text       string
	}{
		{Space{Size: 100 * mib, Used: 90 * mib, Quota: 8192 * mib}, false, "100 of 8192 MiB, 90 in use"},
		{Space{Size: 500 * mib, Used: 260 * mib, Quota: 8192 * mib}, false, "500 of 8192 MiB, 260 in use"},
		{Space{Size: 600 * mib, Used: 260 * mib, Quota: 8192 * mib}, true, "600 of 8192 MiB, 260 in use"},
		{Space{Size: 3000 * mib, Used: 1100 * mib, Quota: 8192 * mib}, false, "3000 of 8192 MiB, 1100 in use"},
		{Space{Size: 7300 * mib, Used: 6900 * mib, Quota: 8192 * mib}, false, "7300 of 8192 MiB, 6900 in use"},
		{Space{Size: 7300 * mib, Used: 6000 * mib, Quota: 8192 * mib}, true, "7300 of 8192 MiB, 6000 in use"},
		{Space{Size: 64 * mib, Used: 60 * mib, Quota: 64 * mib, Full: true}, false, "warning: the store is full (64 of 64 MiB, 60 in use) and refuses writes: delete objects that are not needed; their space is returned within a minute"},
		{Space{Size: 64 * mib, Used: 30 * mib, Quota: 64 * mib, Full: true}, true, "warning: the store is full (64 of 64 MiB, 30 in use) and refuses writes: delete objects that are not needed; their space is returned within a minute"},
		{Space{Size: 62 * mib, Used: 60 * mib, Quota: 64 * mib}, false, "warning: the store is nearly full (62 of 64 MiB, 60 in use): delete objects that are not needed"},
	} {
		if tc.s.worthwhile() != tc.worthwhile || tc.s.String() != tc.text {
			t.Errorf("%+v: worthwhile %v, %q", tc.s, tc.s.worthwhile(), tc.s.String())
		}
	}
}

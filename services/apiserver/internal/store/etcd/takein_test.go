package etcd

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"keelson.dev/services/internal/loopbacktest"
)

// TestOnlyAdmittedMembersJoin checks that a new member must wait until its name is admitted,
// and that a learner gets its vote if the member that added it does not promote it.
func TestOnlyAdmittedMembersJoin(t *testing.T) {
	s := newSite(t, "a", "b", "c")
	s.start("a", "b", "c")
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	var mu sync.Mutex
	admitted, asked := map[string]bool{}, 0
	var wg sync.WaitGroup
	defer wg.Wait()
	taking, stop := context.WithCancel(ctx)
	defer stop()
	for _, n := range []string{"a", "b", "c"} {
		wg.Go(func() {
			_ = s.at(n).TakeIn(taking, func(_ context.Context, name string) bool {
				mu.Lock()
				defer mu.Unlock()
				asked++
				return admitted[name]
			})
		})
	}
	await := func(what string, done func() bool) {
		t.Helper()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for !done() {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("timed out waiting until %s", what)
			}
		}
	}
	s.addresses["d"] = loopbacktest.Address(t)
	there := s.arrive(ctx, "d")
	await("the leader has checked the unadmitted name twice", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return asked > 2
	})
	s.voters("a", "a", "b", "c")
	mu.Lock()
	admitted["d"] = true
	mu.Unlock()
	if err := <-there; err != nil {
		t.Fatal(err)
	}
	await("d votes", func() bool {
		voters, _ := names(s.members("a"))
		return slices.Equal(voters, []string{"a", "b", "c", "d"})
	})
	// The member that added e dies before it promotes it: the leader does.
	s.addresses["e"] = loopbacktest.Address(t)
	there = s.arrive(ctx, "e")
	if err := s.at("b").AddLearner(ctx, "e"); err != nil {
		t.Fatal(err)
	}
	if err := <-there; err != nil {
		t.Fatal(err)
	}
	await("e votes", func() bool {
		voters, _ := names(s.members("a"))
		return len(voters) == 5
	})
	if got := s.at("a").Names(); !slices.Equal(got, []string{"a", "b", "c", "d", "e"}) {
		t.Errorf("names are %v", got)
	}
	if gone, err := s.at("a").Gone(ctx, "e"); gone || err != nil {
		t.Errorf("e is gone: %v, %v", gone, err)
	}
	if gone, err := s.at("a").Gone(ctx, "x"); !gone || err != nil {
		t.Errorf("x is not gone: %v, %v", gone, err)
	}
}

package inflight

import (
	"fmt"
	"sync"
	"testing"
)

func TestGauge(t *testing.T) {
	g := NewGauge(3)
	if !g.Enter(2) || g.Enter(2) || !g.Enter(1) {
		t.Error("a gauge of 3 must take 2 and 1, and not 2 and 2")
	}
	g.Leave(2)
	if !g.Enter(2) {
		t.Error("what has left must make room")
	}
}

// holder is a client with its places.
type holder struct {
	shares  *Shares[string]
	name    string
	leave   []func()
	evicted []int
}

func (h *holder) enter() bool {
	i := len(h.leave)
	leave, ok := h.shares.Enter(h.name, func() { h.evicted = append(h.evicted, i) })
	if ok {
		h.leave = append(h.leave, leave)
	}
	return ok
}

func TestShares(t *testing.T) {
	s := NewShares[string](4)
	greedy, other, third := &holder{shares: s, name: "greedy"}, &holder{shares: s, name: "other"}, &holder{shares: s, name: "third"}
	for range 4 {
		if !greedy.enter() {
			t.Fatal("a client alone must get all places")
		}
	}
	if greedy.enter() {
		t.Error("a fifth place was given")
	}
	for range 2 {
		if !other.enter() {
			t.Fatal("another client must get half of the places")
		}
	}
	if other.enter() || greedy.enter() {
		t.Error("a client got more than its share")
	}
	if fmt.Sprint(greedy.evicted) != "[0 1]" || len(other.evicted) != 0 {
		t.Errorf("greedy lost %v and the other %v, want the two oldest of greedy", greedy.evicted, other.evicted)
	}
	if !third.enter() {
		t.Error("a third client must get a place")
	}
	if third.enter() {
		t.Error("a third client got two of four places, beside 1 and 2")
	}
	for _, h := range []*holder{greedy, other, third} {
		for _, leave := range h.leave {
			leave() // also those that were evicted
		}
	}
	if s.taken != 0 || len(s.places) != 0 {
		t.Errorf("%d places of %d clients are left", s.taken, len(s.places))
	}
}

func TestSharesConcurrently(t *testing.T) {
	s := NewShares[int](8)
	var wg sync.WaitGroup
	for client := range 16 {
		wg.Go(func() {
			for range 200 {
				if leave, ok := s.Enter(client%5, func() {}); ok {
					leave()
				}
			}
		})
	}
	wg.Wait()
	if s.taken != 0 || len(s.places) != 0 {
		t.Errorf("%d places of %d clients are left", s.taken, len(s.places))
	}
}

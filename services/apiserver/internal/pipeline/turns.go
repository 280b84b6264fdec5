package pipeline

import "hash/maphash"

// turns is a set of locks by name, whose waiters can be cancelled. The number of locks is fixed:
// names with the same hash share one.
type turns struct {
	seed   maphash.Seed
	places [64]chan struct{}
}

func newTurns() *turns {
	t := &turns{seed: maphash.MakeSeed()}
	for i := range t.places {
		t.places[i] = make(chan struct{}, 1)
	}
	return t
}

// take returns the lock of a name, a channel of capacity 1: sending acquires the lock, receiving
// releases it.
func (t *turns) take(name string) chan struct{} {
	return t.places[maphash.String(t.seed, name)%uint64(len(t.places))]
}

package pipeline

import "hash/maphash"

// turns lets those go one by one who share a name. It has a fixed number of places, so
// names that fall on one wait for each other.
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

// take is the place of a name: who can send on it has the turn, and receives to end it.
func (t *turns) take(name string) chan struct{} {
	return t.places[maphash.String(t.seed, name)%uint64(len(t.places))]
}

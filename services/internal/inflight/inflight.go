// Package inflight bounds what a server has in progress at once, in total or with a fair share for
// each client.
//
// It never queues: what is above a bound is refused, for the client to try again later.
package inflight

import (
	"container/list"
	"sync"
	"sync/atomic"
)

// Gauge counts what is in progress, up to a bound. Call NewGauge.
type Gauge struct {
	n   atomic.Int64
	max int64
}

// NewGauge returns a gauge with a bound.
func NewGauge(limit int64) *Gauge { return &Gauge{max: limit} }

// Enter adds n to the gauge and returns true, unless that would exceed the bound.
func (g *Gauge) Enter(n int64) bool {
	if g.n.Add(n) > g.max {
		g.n.Add(-n)
		return false
	}
	return true
}

// Leave subtracts what Enter added.
func (g *Gauge) Leave(n int64) { g.n.Add(-n) }

// Shares is a number of places for what lasts long, such as watches, which clients share fairly:
// while places are free, a client may take any number. When all are taken, a client with fewer
// places gets the oldest of the client with the most. So one client never keeps others out, and with
// as many clients as places each keeps one. Call NewShares.
type Shares[C comparable] struct {
	max int

	mu     sync.Mutex
	taken  int
	places map[C]*list.List // of func(), oldest first
}

// NewShares returns shares of a number of places.
func NewShares[C comparable](places int) *Shares[C] {
	return &Shares[C]{max: places, places: map[C]*list.List{}}
}

// Enter takes a place for a client. ok is false if there is none for it. Otherwise leave must be
// called once. When the place goes to another client, evict is called, once and without delay; it
// must not block.
func (s *Shares[C]) Enter(client C, evict func()) (leave func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken >= s.max && !s.makeRoom(client) {
		return nil, false
	}
	mine := s.places[client]
	if mine == nil {
		mine = list.New()
		s.places[client] = mine
	}
	place := mine.PushBack(evict)
	s.taken++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.places[client] == mine && place.Value != nil {
			s.remove(client, place)
		}
	}, true
}

// makeRoom takes a place from the client with the most, if that leaves it with at least as many as
// the other then has.
func (s *Shares[C]) makeRoom(client C) bool {
	var richest C
	most := 0
	for c, list := range s.places {
		if n := list.Len(); n > most {
			richest, most = c, n
		}
	}
	own := 0
	if list := s.places[client]; list != nil {
		own = list.Len()
	}
	if most-1 < own+1 {
		return false
	}
	oldest := s.places[richest].Front()
	evict, _ := oldest.Value.(func())
	s.remove(richest, oldest)
	evict()
	return true
}

func (s *Shares[C]) remove(client C, place *list.Element) {
	mine := s.places[client]
	mine.Remove(place)
	place.Value = nil
	if s.taken--; mine.Len() == 0 {
		delete(s.places, client)
	}
}

package raft

import (
	"context"
	"slices"
	"time"

	hraft "github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
)

const (
	// upkeepEvery is the interval at which a member checks whether entries expire or a snapshot
	// is due.
	upkeepEvery = 500 * time.Millisecond
	// tickEvery is how often, in milliseconds, an idle leader writes its clock at least while
	// there are entries that expire. It is less than maxStep, so that no time is lost.
	tickEvery = 10_000
	// tickShare is the share of a term, as its inverse, that is lost at most when it ends.
	tickShare = 4
)

// term is the term in which this member leads, and its clock when it began.
type term struct {
	number uint64
	since  int64
}

// ticks reports whether an idle leader writes its clock. passed is the time since the last
// command and age that since the term began, in milliseconds. What has passed since the last
// command of a term is not counted once the term has ended. Young terms write more often, so
// that a store whose terms are all short does not lose all of the time, and entries expire.
func ticks(passed, age int64) bool { return passed >= min(age/tickShare, tickEvery) }

// upkeep advances the log's time, takes snapshots and sets the bounds.
func (s *Store) upkeep() {
	var led term
	tick := time.NewTicker(upkeepEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-s.ctx.Done():
			return
		}
		if s.snapshotDue() {
			if err := s.raft.Snapshot().Error(); err != nil {
				s.log.WarnContext(s.ctx, "the raft store cannot take a snapshot", "error", err)
			}
		}
		for s.raft.State() == hraft.Leader && s.ctx.Err() == nil {
			op := s.due(&led)
			if op == nil {
				break
			}
			ctx, cancel := context.WithTimeout(s.ctx, s.localTime)
			_, err := s.proposals.do(ctx, []*raftv1.Operation{op})
			cancel()
			if err != nil {
				break
			}
		}
	}
}

// snapshotDue reports whether more was applied since the last snapshot than SnapshotBytes and
// the size of the state.
func (s *Store) snapshotDue() bool {
	m := s.machine
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.bytes > max(s.cfg.SnapshotBytes, m.size)
}

// due returns the operation that the leader must write to the log now, or nil. led is the
// caller's, for the next call.
func (s *Store) due(led *term) *raftv1.Operation {
	m := s.machine
	m.mu.RLock()
	defer m.mu.RUnlock()
	var bounds []*raftv1.Bound
	for _, b := range m.bounds {
		bounds = append(bounds, b.Bound)
	}
	if want := s.cfg.bounds(); !slices.EqualFunc(bounds, want, func(a, b *raftv1.Bound) bool { return proto.Equal(a, b) }) {
		return &raftv1.Operation{Kind: &raftv1.Operation_Bounds{Bounds: &raftv1.Bounds{Bounds: want}}}
	}
	first, ok := m.expiring.Min()
	if !ok {
		return nil
	}
	// The time since the last command, which the next one adds to the log's time.
	now, current := s.clock(), s.raft.CurrentTerm()
	passed := now - m.clock
	if led.number != current {
		*led = term{current, now}
	}
	if m.term != current || passed >= upkeepEvery.Milliseconds() && ticks(passed, now-led.since) || first.deadline <= m.now+max(passed, 0) {
		return &raftv1.Operation{Kind: &raftv1.Operation_Tick{Tick: &raftv1.Tick{}}}
	}
	return nil
}

package raft

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/google/btree"
	hraft "github.com/hashicorp/raft"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

const (
	// roundTime bounds one request to other members.
	roundTime = 2 * time.Second
	// barrierTime bounds how long a barrier may wait for the library's queue.
	barrierTime = 2 * time.Second
)

var errNoLeader = fmt.Errorf("the raft store has no leader: %w", store.ErrUnavailable)

// linearize waits until this member contains everything that was acknowledged before the call.
func (s *Store) linearize(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	deadline := time.Now().Add(s.settleTime)
	pause := 5 * time.Millisecond
	for {
		if s.closed.Load() {
			return store.ErrClosed
		}
		index, err := s.readIndex(ctx)
		if err == nil {
			err = s.machine.wait(ctx, index, deadline)
		}
		if err == nil || ctx.Err() != nil || errors.Is(err, store.ErrClosed) {
			return err
		}
		if s.closed.Load() {
			return store.ErrClosed
		}
		if time.Now().Add(pause).After(deadline) {
			if errors.Is(err, errNoLeader) {
				return err
			}
			return fmt.Errorf("%w: %w", errNoLeader, err)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, 100*time.Millisecond)
	}
}

// sleep waits for d, or returns ctx's error if ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// readIndex returns the index that this member must have applied before a linearizable read.
func (s *Store) readIndex(ctx context.Context) (uint64, error) {
	if s.raft.State() == hraft.Leader {
		return s.leaderIndex(ctx)
	}
	return s.asks.do(ctx, func() (uint64, error) {
		_, leader := s.raft.LeaderWithID()
		if leader == "" {
			return 0, errNoLeader
		}
		if leader == s.id {
			return 0, errNotLeader // outdated
		}
		p, err := s.transport.peer(leader)
		if err != nil {
			return 0, err
		}
		ctx, cancel := context.WithTimeout(s.ctx, roundTime)
		defer cancel()
		r, err := p.ReadIndex(ctx, &raftv1.ReadIndexRequest{Target: string(leader)})
		return r.GetIndex(), err
	})
}

// leaderIndex returns the index of the last command that this member had applied at a time,
// after the call began, at which it certainly led.
//
// The library's VerifyLeader would count responses to heartbeats that were sent before the
// call: a leader that did not run for a while could still act as one.
// one still.
func (s *Store) leaderIndex(ctx context.Context) (uint64, error) {
	if term := s.ready.Load(); term != 0 && s.alone() {
		index := s.machine.appliedIndex()
		if s.raft.CurrentTerm() == term {
			return index, nil
		}
	}
	return s.confirms.do(ctx, func() (uint64, error) {
		term, err := s.leadership()
		if err != nil {
			return 0, err
		}
		index := s.machine.appliedIndex()
		return index, s.confirm(term)
	})
}

// alone reports whether this member is the only voter.
func (s *Store) alone() bool {
	v := s.voters()
	return len(v) == 1 && v[0] == s.id
}

// leadership returns the term in which this member leads, once it has applied everything that
// was committed in earlier terms.
func (s *Store) leadership() (uint64, error) {
	term := s.raft.CurrentTerm()
	if s.raft.State() != hraft.Leader {
		return 0, errNotLeader
	}
	if s.ready.Load() == term {
		return term, nil
	}
	// If the term does not change meanwhile, a successful barrier belongs to this member's
	// leadership in that term.
	if err := s.raft.Barrier(barrierTime).Error(); err != nil {
		return 0, fmt.Errorf("%w: %w", errNotLeader, err)
	}
	if s.raft.CurrentTerm() != term {
		return 0, errNotLeader
	}
	s.ready.Store(term)
	return term, nil
}

// confirm asks the other voters whether they are still in the term. If a majority is, no other
// leader has been elected: its voters would have moved to a later term before they voted.
func (s *Store) confirm(term uint64) error {
	voters := s.voters()
	need := len(voters)/2 + 1
	ctx, cancel := context.WithTimeout(s.ctx, roundTime)
	defer cancel()
	answers := make(chan error, len(voters))
	var errs []error
	have, asked := 0, 0
	for _, id := range voters {
		if id == s.id {
			have++
			continue
		}
		asked++
		s.calls.Go(func() { answers <- s.confirmedBy(ctx, id, term) })
	}
	for range asked {
		if have >= need {
			break
		}
		if err := <-answers; err != nil {
			errs = append(errs, err)
			continue
		}
		have++
	}
	if have < need {
		return fmt.Errorf("%w: %w", errNotLeader, errors.Join(errs...))
	}
	if s.raft.CurrentTerm() != term {
		return errNotLeader
	}
	return nil
}

func (s *Store) confirmedBy(ctx context.Context, id hraft.ServerID, term uint64) error {
	p, err := s.transport.peer(id)
	if err != nil {
		return err
	}
	r, err := p.ConfirmTerm(ctx, &raftv1.ConfirmTermRequest{Target: string(id)})
	if err != nil {
		return err
	}
	if r.Term != term {
		return fmt.Errorf("member %s is in term %d, not %d", id, r.Term, term)
	}
	return nil
}

func (m *machine) appliedIndex() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.applied
}

// wait waits until the machine has applied an index.
func (m *machine) wait(ctx context.Context, index uint64, deadline time.Time) error {
	var late <-chan time.Time
	for {
		m.mu.RLock()
		applied, changed, closed := m.applied, m.changed, m.closed
		m.mu.RUnlock()
		switch {
		case applied >= index:
			return nil
		case closed:
			return store.ErrClosed
		}
		if late == nil {
			t := time.NewTimer(time.Until(deadline))
			defer t.Stop()
			late = t.C
		}
		select {
		case <-changed:
		case <-late:
			return fmt.Errorf("this member has applied index %d, the leader %d", applied, index)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, store.Revision, error) {
	if err := s.linearize(ctx); err != nil {
		return store.Entry{}, 0, err
	}
	m := s.machine
	m.mu.RLock()
	defer m.mu.RUnlock()
	r := m.get(key)
	if r == nil {
		return store.Entry{}, m.rev, store.ErrNotFound
	}
	return r.entry(), m.rev, nil
}

// Revision implements store.Store.
func (s *Store) Revision(ctx context.Context) (store.Revision, error) {
	if err := s.linearize(ctx); err != nil {
		return 0, err
	}
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	return s.machine.rev, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, o store.ListOptions) (store.Page, error) {
	if err := s.linearize(ctx); err != nil {
		return store.Page{}, err
	}
	keys, undo, rev, err := s.machine.at(prefix, o.Revision)
	if err != nil {
		return store.Page{}, err
	}
	page := store.Page{Revision: rev}
	ascend(keys, undo, prefix, func(r *record) {
		page.Count++
		switch {
		case o.After != "" && r.key <= o.After:
		case o.Limit > 0 && int64(len(page.Entries)) >= o.Limit:
			page.More = true
		default:
			page.Entries = append(page.Entries, r.entry())
		}
	})
	return page, nil
}

// at returns the state at a revision (0: the newest) under a prefix, as the current keys and
// what to undo in them.
func (m *machine) at(prefix string, rev store.Revision) (*btree.BTreeG[*record], map[string]*record, store.Revision, error) {
	m.mu.Lock() // Clone changes the tree
	defer m.mu.Unlock()
	switch {
	case rev == 0:
		rev = m.rev
	case rev > m.rev:
		return nil, nil, 0, store.ErrFutureRevision
	case rev < m.history.compacted:
		return nil, nil, 0, &store.CompactedError{Oldest: m.history.compacted}
	}
	var undo map[string]*record
	if rev < m.rev {
		undo = m.history.undo(prefix, rev)
	}
	return m.keys.Clone(), undo, rev, nil
}

// ascend visits the records with a prefix in order, with undo applied.
func ascend(keys *btree.BTreeG[*record], undo map[string]*record, prefix string, visit func(*record)) {
	var gone []*record // records to put back, in order
	for _, r := range undo {
		if r != nil {
			gone = append(gone, r)
		}
	}
	sort.Slice(gone, func(i, j int) bool { return gone[i].key < gone[j].key })
	keys.AscendGreaterOrEqual(&record{key: prefix}, func(r *record) bool {
		if !strings.HasPrefix(r.key, prefix) {
			return false
		}
		for len(gone) > 0 && gone[0].key <= r.key {
			visit(gone[0])
			gone = gone[1:]
		}
		if _, changed := undo[r.key]; !changed {
			visit(r)
		}
		return true
	})
	for _, r := range gone {
		visit(r)
	}
}

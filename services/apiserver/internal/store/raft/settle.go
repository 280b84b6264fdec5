package raft

import (
	"bytes"
	"context"
	"errors"
	"time"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

// settle resolves the outcome of attempts whose reply did not arrive. They were sent after the
// store was at revision before. It returns those that had no effect and never will.
func (s *Store) settle(unknown []*attempt, before store.Revision, last uint64, deadline time.Time) (again []*attempt) {
	upTo, err := s.cancelUpTo(last, deadline)
	for _, a := range unknown {
		if err != nil {
			a.v.Err = a.unknown(err)
			continue
		}
		v, known := s.machine.judge(a.w, before, upTo)
		switch {
		case known:
			*a.v = v
		case v.Err != nil:
			a.v.Err = a.unknown(v.Err)
		default:
			a.doubtful = true
			again = append(again, a)
		}
	}
	return again
}

// cancelUpTo cancels the attempts up to a sequence. It returns the revision at which they were
// cancelled, once this member has applied it.
func (s *Store) cancelUpTo(last uint64, deadline time.Time) (store.Revision, error) {
	ctx, cancel := context.WithDeadline(context.Background(), deadline)
	defer cancel()
	op := &raftv1.Operation{Kind: &raftv1.Operation_Cancel{Cancel: &raftv1.Cancel{Session: s.session, Sequence: last}}}
	res, err := s.administer(ctx, op, deadline)
	if err != nil {
		return 0, err
	}
	return res.outcomes[0].rev, s.machine.wait(ctx, res.index, deadline)
}

// judge finds out from the history whether a write was applied between two revisions. It
// returns the verdict and true if it was, a verdict with an error and false if that is unknown,
// and an empty verdict and false if it was not.
func (m *machine) judge(w *store.Write, before, upTo store.Revision) (v store.Verdict, known bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	events, ok := m.history.changes(w.Key, before, upTo)
	if !ok {
		return m.judgeByState(w)
	}
	for _, e := range events {
		switch {
		case (e.put == nil) != (w.Value == nil) || !expected(w, e.before):
		case w.Value == nil:
			return store.Verdict{Err: errors.New("another write may have deleted it")}, false
		case w.Settled != nil && w.Settled(e.put.value):
			return store.Verdict{Revision: e.rev}, true
		case w.Settled == nil && bytes.Equal(w.Value, e.put.value):
			return store.Verdict{Err: errors.New("another write may have stored the same value")}, false
		}
	}
	return store.Verdict{}, false
}

// expected reports whether a write's precondition holds for this record.
func expected(w *store.Write, before *record) bool {
	switch {
	case w.Expect == store.Any:
		return true
	case before == nil:
		return w.Expect == store.MustNotExist
	}
	return before.mod == w.Expect
}

// judgeByState is judge without a history.
func (m *machine) judgeByState(w *store.Write) (v store.Verdict, known bool) {
	r := m.get(w.Key)
	switch {
	case r != nil && w.Value != nil && w.Settled != nil && w.Settled(r.value):
		return store.Verdict{Revision: r.mod}, true
	case r != nil && w.Expect > 0 && r.mod == w.Expect: // unchanged
		return store.Verdict{}, false
	case r != nil && w.Value == nil && w.Expect > 0 && r.created <= w.Expect: // never deleted
		return store.Verdict{}, false
	}
	return store.Verdict{Err: errors.New("the history of the key is not known any more")}, false
}

package raft

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

// maxAnswer exceeds the size of the leader's largest response.
const maxAnswer = 2 * (maxValue + currentBytes + entryBytes)

// follow sends operations to the leader, which is another member.
func (s *Store) follow(ops []*raftv1.Operation) func() (result, error) {
	type answer struct {
		res result
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		res, err := s.ask(ops)
		answers <- answer{res, err}
	}()
	return func() (result, error) {
		a := <-answers
		return a.res, a.err
	}
}

// ask makes one request to the leader.
func (s *Store) ask(ops []*raftv1.Operation) (result, error) {
	_, leader := s.raft.LeaderWithID()
	if leader == "" || leader == s.id {
		return result{}, errNotLeader
	}
	p, err := s.transport.peer(leader)
	if err != nil {
		return result{}, fmt.Errorf("%w: %w", errNotLeader, err)
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.forwardTime)
	defer cancel()
	r, err := p.Propose(ctx, &raftv1.ProposeRequest{Target: string(leader), Operations: ops}, grpc.MaxCallRecvMsgSize(maxAnswer))
	if status.Code(err) == codes.Aborted {
		return result{}, fmt.Errorf("leader %s: %w", leader, store.ErrTooMany)
	}
	if err != nil {
		return result{}, fmt.Errorf("leader %s: %w", leader, err)
	}
	if len(r.Outcomes) != len(ops) {
		return result{}, fmt.Errorf("leader %s returned %d outcomes for %d operations", leader, len(r.Outcomes), len(ops))
	}
	res := result{outcomes: make([]outcome, len(ops)), index: r.Index}
	for i, o := range r.Outcomes {
		res.outcomes[i] = outcome{code: o.Code, rev: store.Revision(o.Revision)}
		if c := o.Current; c != nil {
			value := c.Value
			if value == nil {
				value = []byte{}
			}
			res.outcomes[i].current = &record{key: c.Key, value: value, mod: store.Revision(c.ModRevision), created: store.Revision(c.CreateRevision)}
		}
	}
	return res, nil
}

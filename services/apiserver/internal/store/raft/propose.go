package raft

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

const (
	// entryBytes and entryOperations bound what shares one log entry. A request is never split
	// over two entries.
	entryBytes      = 1 << 20
	entryOperations = 4096
	// entriesInFlight is how many entries may be in flight. While they are, requests are queued
	// for the next entry: this is the group commit.
	entriesInFlight = 2
	// forwardsInFlight is how many requests to the leader may be in flight.
	forwardsInFlight = 4
	// queueBytes and queueRequests bound the queue.
	queueBytes    = 64 << 20
	queueRequests = 32 << 10
	// raftQueueTime bounds how long an entry may wait for the library's queue.
	raftQueueTime = 2 * time.Second
)

// errNotLeader means that nothing was done because another member leads.
var errNotLeader = errors.New("not the leader")

// proposals batches requests: on the leader into log entries, on a follower into requests to
// the leader.
type proposals struct {
	// submit starts a batch of operations and returns a function that waits for its result.
	submit func([]*raftv1.Operation) func() (result, error)

	mu      sync.Mutex
	queue   []*proposal
	bytes   int64
	closed  bool
	wake    chan struct{} // buffered; signals that the queue is not empty, or closed
	flights chan flight
	slots   chan struct{}
	wg      sync.WaitGroup
	sent    atomic.Int64 // batches submitted so far
}

// proposal is one request.
type proposal struct {
	ctx  context.Context
	ops  []*raftv1.Operation
	size int64
	done chan struct{}
	res  result
	err  error
}

// flight is a submitted batch.
type flight struct {
	wait      func() (result, error)
	proposals []*proposal
}

// newProposals returns proposals that queue requests while this number of batches is in flight.
func newProposals(flights int, submit func([]*raftv1.Operation) func() (result, error)) *proposals {
	p := &proposals{
		submit: submit, wake: make(chan struct{}, 1),
		flights: make(chan flight, flights), slots: make(chan struct{}, flights),
	}
	p.wg.Go(p.send)
	p.wg.Go(p.land)
	return p
}

// close fails the queued requests and waits for the submitted ones.
func (p *proposals) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.poke()
	p.wg.Wait()
}

// poke wakes send.
func (p *proposals) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// do applies operations, all in one entry. If ctx ends first, the outcome is unknown.
func (p *proposals) do(ctx context.Context, ops []*raftv1.Operation) (result, error) {
	q := &proposal{ctx: ctx, ops: ops, done: make(chan struct{})}
	for _, op := range ops {
		q.size += int64(proto.Size(op)) + 8
	}
	p.mu.Lock()
	switch {
	case p.closed:
		p.mu.Unlock()
		return result{}, errNotLeader
	case len(p.queue) >= queueRequests || p.bytes+q.size > queueBytes && len(p.queue) > 0:
		p.mu.Unlock()
		return result{}, store.ErrTooMany
	}
	p.queue = append(p.queue, q)
	p.bytes += q.size
	p.mu.Unlock()
	p.poke()
	select {
	case <-q.done:
		return q.res, q.err
	case <-ctx.Done():
		return result{}, ctx.Err()
	}
}

// next takes the requests of the next batch out of the queue.
func (p *proposals) next() (out []*proposal, ops int, closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var size int64
	n := 0
	for _, q := range p.queue {
		if n > 0 && (size+q.size > entryBytes || ops+len(q.ops) > entryOperations) {
			break
		}
		n++
		p.bytes -= q.size
		if p.closed || q.ctx.Err() != nil {
			q.end(result{}, errNotLeader) // a caller that gave up does not receive it
			continue
		}
		size += q.size
		ops += len(q.ops)
		out = append(out, q)
	}
	clear(p.queue[:n])
	if p.queue = p.queue[n:]; len(p.queue) == 0 {
		p.queue = nil
	}
	return out, ops, p.closed
}

func (q *proposal) end(res result, err error) {
	q.res, q.err = res, err
	close(q.done)
}

// send submits batches of queued requests.
func (p *proposals) send() {
	defer close(p.flights)
	for {
		p.slots <- struct{}{}
		batch, ops, closed := p.next()
		if len(batch) == 0 {
			<-p.slots
			if closed {
				return
			}
			<-p.wake
			continue
		}
		all := make([]*raftv1.Operation, 0, ops)
		for _, q := range batch {
			all = append(all, q.ops...)
		}
		p.sent.Add(1)
		p.flights <- flight{p.submit(all), batch}
	}
}

// land distributes the result of each batch to its requests.
func (p *proposals) land() {
	for f := range p.flights {
		res, err := f.wait()
		<-p.slots
		at := 0
		for _, q := range f.proposals {
			if err != nil {
				q.end(result{}, err)
				continue
			}
			if at+len(q.ops) > len(res.outcomes) {
				q.end(result{}, fmt.Errorf("expected more than %d outcomes", len(res.outcomes)))
				continue
			}
			q.end(result{res.outcomes[at : at+len(q.ops)], res.index}, nil)
			at += len(q.ops)
		}
	}
}

// lead writes operations to this member's log.
func (s *Store) lead(ops []*raftv1.Operation) func() (result, error) {
	data, err := proto.Marshal(&raftv1.Command{Format: format, ClockMs: s.clock(), Operations: ops})
	if err != nil { // for example a key that is not UTF-8
		err = fmt.Errorf("%w: %w", errNotLeader, err)
		return func() (result, error) { return result{}, err }
	}
	future := s.raft.Apply(data, raftQueueTime)
	return func() (result, error) {
		err := future.Error()
		if errors.Is(err, hraft.ErrNotLeader) || errors.Is(err, hraft.ErrEnqueueTimeout) || errors.Is(err, hraft.ErrLeadershipTransferInProgress) {
			err = fmt.Errorf("%w: %w", errNotLeader, err) // nothing was written
		}
		if err != nil {
			return result{}, err
		}
		res, _ := future.Response().(result)
		return res, nil
	}
}

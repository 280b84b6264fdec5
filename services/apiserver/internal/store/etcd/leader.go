package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver"

	"keelson.dev/services/apiserver/internal/store"
)

// Bounds of reads. Together with settleTime they bound how long a call waits for members that
// do not answer.
const (
	// readTime bounds how long a read is repeated.
	readTime = 6 * time.Second
	// attemptTime bounds one attempt of a short read, and listTime one of a long read that
	// another process answers.
	attemptTime = 1500 * time.Millisecond
	listTime    = 15 * time.Second
	// graceTime bounds how long requests to the previous leader may still be answered once the
	// new one has committed an entry, and commitTime how long to wait for that. What reached
	// the previous leader's log and is in the new leader's is answered by then.
	graceTime  = 100 * time.Millisecond
	commitTime = time.Second
)

// term is the time during which one member leads.
type term struct {
	ctx context.Context
	end context.CancelFunc
}

// newTerm starts a term and returns the previous one, if any.
func (s *Store) newTerm() (before *term) {
	ctx, end := context.WithCancel(context.Background())
	return s.term.Swap(&term{ctx, end})
}

// followLeader starts a new term at each change of the leader until ctx ends.
func (s *Store) followLeader(ctx context.Context, server *etcdserver.EtcdServer) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		changed := server.LeaderChangedNotify()
		select {
		case <-changed:
			before := s.newTerm()
			wg.Go(func() { s.endTerm(ctx, before) })
		case <-ctx.Done():
			return
		}
	}
}

// endTerm ends the proposals of a previous leader's term, once they cannot be answered any
// more.
func (s *Store) endTerm(ctx context.Context, before *term) {
	defer before.end()
	committed, cancel := context.WithTimeout(ctx, commitTime)
	_, _ = s.revision(committed)
	cancel()
	grace := time.NewTimer(graceTime)
	defer grace.Stop()
	select {
	case <-grace.C:
	case <-ctx.Done():
	}
}

// withValues is a context that also has the values of another one.
type withValues struct {
	context.Context
	values context.Context
}

func (v withValues) Value(key any) any {
	if x := v.Context.Value(key); x != nil {
		return x
	}
	return v.values.Value(key)
}

// proposal returns the context of one proposal. It ends after proposalTime or with the leader
// that the proposal is sent to.
func (s *Store) proposal(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(withValues{s.term.Load().ctx, context.WithoutCancel(ctx)}, s.proposalTime)
}

// again reports whether repeating may succeed, for a read or for a write that did not happen.
func again(err error) bool {
	if dropped(err) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return true
	}
	var e rpctypes.EtcdError
	if errors.As(rpctypes.Error(err), &e) {
		switch {
		case errors.Is(e, rpctypes.ErrStopped):
			return false
		case errors.Is(e, rpctypes.ErrLeaderChanged), errors.Is(e, rpctypes.ErrNotLeader), errors.Is(e, rpctypes.ErrNoLeader),
			errors.Is(e, rpctypes.ErrTimeout), errors.Is(e, rpctypes.ErrTimeoutDueToLeaderFail),
			errors.Is(e, rpctypes.ErrTimeoutDueToConnectionLost):
			return true
		}
		return e.Code() == codes.Unavailable
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}

// repeat repeats a read while the members have no leader. Each attempt takes at most the time
// each.
func (s *Store) repeat(ctx context.Context, each time.Duration, read func(ctx context.Context) error) error {
	deadline := time.Now().Add(readTime)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		try, cancel := context.WithTimeout(ctx, each)
		err := read(try)
		cancel()
		if err == nil || ctx.Err() != nil || s.closed.Load() || !again(err) {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %w", store.ErrUnavailable, err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// read reads a range. It is linearizable.
func (s *Store) read(ctx context.Context, req *pb.RangeRequest) (resp *pb.RangeResponse, err error) {
	if s.local {
		// This is what etcd does itself, in two steps: confirming the revision may have to be
		// repeated, and reading may take long.
		err := s.repeat(ctx, attemptTime, func(ctx context.Context) error {
			_, err := s.revision(ctx)
			return err
		})
		if err != nil {
			return nil, err
		}
		req.Serializable = true
		return s.kv.Range(ctx, req)
	}
	each := listTime
	if len(req.RangeEnd) == 0 || req.CountOnly {
		each = attemptTime
	}
	err = s.repeat(ctx, each, func(ctx context.Context) error {
		resp, err = s.kv.Range(ctx, req)
		return err
	})
	return resp, err
}

package etcd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"keelson.dev/services/apiserver/internal/store"
)

// guard is a key of this process that every create compares. The condition of a create (the key
// does not exist) can hold a second time, after another client has deleted what the first
// attempt wrote. Before a create is repeated, the guard is therefore moved, so that no earlier
// attempt can be applied any more. (A condition on a revision cannot hold twice, so other
// writes need no guard.)
type guard struct {
	key string
	mu  sync.Mutex
	// rev is the guard's revision, or 0 while it does not exist, as at the start.
	rev atomic.Int64
}

// guardTTL is the time to live of guards in seconds, so that those of ended processes expire.
const guardTTL = 3600

// WriterPrefix is the prefix of the guards' keys.
const WriterPrefix = "/keelson/writer/"

func newGuard() guard { return guard{key: WriterPrefix + rand.Text()} }

// attach adds the guard as the last condition of a write.
func (g *guard) attach(req *pb.TxnRequest, rev int64) {
	key := []byte(g.key)
	req.Compare = append(req.Compare, modified(key, rev))
	req.Failure = append(req.Failure, read(key))
}

// moved reports whether a create failed although its key does not exist because the guard has
// moved, and records the guard's revision.
func (g *guard) moved(resp *pb.TxnResponse, rev int64) bool {
	if resp.Succeeded || found(resp, 0) != nil {
		return false
	}
	var now int64
	if kv := found(resp, len(resp.Responses)-1); kv != nil {
		now = kv.ModRevision
	}
	if now == rev {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rev.CompareAndSwap(rev, now)
	return true
}

// moveGuard moves the guard from the revision that an attempt compared, unless it has moved
// already, and returns its revision.
func (s *Store) moveGuard(ctx context.Context, from int64, deadline time.Time) (int64, error) {
	g := &s.guard
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		if now := g.rev.Load(); now != from {
			return now, nil
		}
		lease, err := s.lease(ctx, guardTTL)
		if err == nil {
			var resp *pb.PutResponse
			ctx, cancel := s.proposal(ctx)
			resp, err = s.kv.Put(ctx, &pb.PutRequest{Key: []byte(g.key), Value: []byte{}, Lease: int64(lease)})
			cancel()
			if err == nil {
				g.rev.Store(resp.Header.Revision)
				s.saw(resp.Header.Revision)
				return resp.Header.Revision, nil
			}
			s.dropLease(guardTTL, lease)
		}
		if s.closed.Load() || time.Now().After(deadline) {
			return 0, err
		}
		<-time.After(20 * time.Millisecond)
	}
}

// settleCreate resolves the outcome of a create whose reply did not arrive. It was sent after
// revision before. If known is false, it was not applied, cannot be applied any more, and may
// be repeated.
func (s *Store) settleCreate(ctx context.Context, w *store.Write, before, guard int64, deadline time.Time) (v store.Verdict, known bool) {
	unknown := func(err error) (store.Verdict, bool) {
		return store.Verdict{Err: fmt.Errorf("write %s: %w: %w", w.Key, store.ErrUnknownOutcome, err)}, true
	}
	upTo, err := s.moveGuard(ctx, guard, deadline)
	if err != nil {
		return unknown(err)
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	written, err := s.history(ctx, w.Key, before, upTo)
	if errors.Is(err, store.ErrCompacted) {
		var e store.Entry
		if e, _, err = s.Get(ctx, w.Key); err != nil {
			return unknown(err) // the key does not exist, but may have existed in between
		}
		written = []store.Entry{e}
	} else if err != nil {
		return unknown(err)
	}
	for _, e := range written {
		switch {
		case w.Settled == nil:
			return unknown(errors.New("another client may have written it"))
		case w.Settled(e.Value):
			return store.Verdict{Revision: e.ModRevision}, true
		}
	}
	return store.Verdict{}, false
}

// history returns what was written to a key after revision after, up to revision upTo.
func (s *Store) history(ctx context.Context, key string, after, upTo int64) ([]store.Entry, error) {
	w, err := s.watch(ctx, key, after+1)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	var out []store.Entry
	for {
		// Progress reports nothing while the watch lags behind, so request it repeatedly.
		if err := w.Progress(ctx); err != nil {
			return nil, err
		}
		wait, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		b, err := w.Next(wait)
		cancel()
		if err != nil {
			if wait.Err() != nil && ctx.Err() == nil {
				continue
			}
			return nil, err
		}
		for _, e := range b.Events {
			if e.Entry.Key == key && e.Type == store.Put && int64(e.Entry.ModRevision) <= upTo {
				out = append(out, e.Entry)
			}
		}
		if int64(b.Revision) >= upTo {
			return out, nil
		}
	}
}

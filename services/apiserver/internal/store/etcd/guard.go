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

// guard is a key of this process that every create compares. A create's own
// condition (the key is absent) can hold a second time, after somebody deleted
// what the first attempt had written; so before a create is repeated, the guard
// is moved, and no earlier attempt can be applied any more. (A condition on a
// revision cannot hold twice, so other writes need none.)
type guard struct {
	key string
	mu  sync.Mutex
	// rev is the guard's revision; 0 while it does not exist, as at the start.
	rev atomic.Int64
}

// guardTTL lets the guards of processes that are gone expire.
const guardTTL = 3600

// WriterPrefix is that of the guards' keys.
const WriterPrefix = "/keelson/writer/"

func newGuard() guard { return guard{key: WriterPrefix + rand.Text()} }

// attach makes the write depend on the guard, after all that it depends on already.
func (g *guard) attach(req *pb.TxnRequest, rev int64) {
	key := []byte(g.key)
	req.Compare = append(req.Compare, modified(key, rev))
	req.Failure = append(req.Failure, read(key))
}

// moved tells whether a create failed because of the guard alone or among other
// reasons, and takes note of where the guard is.
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

// moveGuard moves the guard on from where an attempt saw it, unless another did,
// and returns where it is.
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

// settleCreate finds out what became of an attempt to create whose answer did
// not come. It was sent after revision before; when it is not known to have been
// applied, it was not and cannot be any more, and may be repeated.
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
			return unknown(err) // absent: it may have been there in between
		}
		written = []store.Entry{e}
	} else if err != nil {
		return unknown(err)
	}
	for _, e := range written {
		switch {
		case w.Settled == nil:
			return unknown(errors.New("somebody wrote it"))
		case w.Settled(e.Value):
			return store.Verdict{Revision: e.ModRevision}, true
		}
	}
	return store.Verdict{}, false
}

// history is what was written to a key between two revisions.
func (s *Store) history(ctx context.Context, key string, after, upTo int64) ([]store.Entry, error) {
	w, err := s.watch(ctx, key, after+1)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	var out []store.Entry
	for {
		// Progress shows nothing while the watch lags, so ask until it does.
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

package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/failpoint"
)

// Commit implements store.Store. When ctx ends, it still resolves what was proposed, and gives
// up the rest.
func (s *Store) Commit(ctx context.Context, writes []store.Write) ([]store.Verdict, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.closed.Load() {
		return nil, store.ErrClosed
	}
	verdicts := make([]store.Verdict, len(writes))
	if len(writes) == 1 {
		verdicts[0] = s.commit(ctx, &writes[0])
		return verdicts, nil
	}
	// Writes to the same key are applied one after another: next[i] follows write i.
	next := make([]int, len(writes))
	last := make(map[string]int, len(writes))
	var firsts []int
	for i := range writes {
		if before, ok := last[writes[i].Key]; ok {
			next[before] = i
		} else {
			firsts = append(firsts, i)
		}
		last[writes[i].Key] = i
	}
	var wg sync.WaitGroup
	for _, first := range firsts {
		wg.Go(func() {
			for i := first; ; i = next[i] {
				verdicts[i] = s.commit(ctx, &writes[i])
				if next[i] == 0 {
					return
				}
			}
		})
	}
	wg.Wait()
	return verdicts, nil
}

// commit applies one write.
func (s *Store) commit(ctx context.Context, w *store.Write) store.Verdict {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return store.Verdict{Err: ctx.Err()}
	}
	if w.Expect != store.Any {
		return s.conditional(ctx, w, int64(w.Expect))
	}
	// A stale read suffices, because the condition of the write detects it.
	resp, err := s.kv.Range(ctx, &pb.RangeRequest{Key: []byte(w.Key), Serializable: true, KeysOnly: true})
	if err != nil {
		return store.Verdict{Err: s.failure(ctx, "write "+w.Key, err)}
	}
	var expect int64
	if len(resp.Kvs) > 0 {
		expect = resp.Kvs[0].ModRevision
	}
	if expect == 0 && w.Value == nil { // do not rely on a stale read alone
		if _, _, err := s.Get(ctx, w.Key); err != nil {
			return store.Verdict{Err: err}
		}
	}
	var v store.Verdict
	for range anyTries {
		v = s.conditional(ctx, w, expect)
		switch {
		case errors.Is(v.Err, store.ErrNotFound) && expect != 0:
			expect = 0
		case v.Current != nil:
			expect = int64(v.Current.ModRevision)
		default:
			return v
		}
		if ctx.Err() != nil {
			return store.Verdict{Err: ctx.Err()}
		}
	}
	return v
}

// conditional applies one write that depends on the key's revision (0: it does not exist), and
// repeats it until its outcome is known.
func (s *Store) conditional(ctx context.Context, w *store.Write, expect int64) store.Verdict {
	ctx = context.WithoutCancel(ctx) // a proposal cannot be cancelled
	creates := expect == 0 && w.Value != nil
	deadline := time.Now().Add(s.settleTime)
	unknown := false // an earlier attempt may have been applied, or may still be
	wait := 10 * time.Millisecond
	for attempt := 0; ; attempt++ {
		leaseID, err := s.leaseOf(ctx, w)
		if err != nil && again(err) && !s.closed.Load() && time.Now().Add(wait).Before(deadline) {
			<-time.After(wait)
			continue
		}
		if err != nil {
			if unknown {
				return store.Verdict{Err: fmt.Errorf("write %s: %w: %w", w.Key, store.ErrUnknownOutcome, err)}
			}
			return store.Verdict{Err: s.failure(ctx, "write "+w.Key, err)}
		}
		req := txn(w, expect, leaseID)
		before, guard := s.seen.Load(), s.guard.rev.Load()
		if creates {
			s.guard.attach(req, guard)
		}
		resp, err := s.propose(ctx, w, req, attempt)
		if err == nil {
			s.saw(resp.Header.Revision)
			if creates && s.guard.moved(resp, guard) && time.Now().Before(deadline) {
				continue
			}
			return judge(w, expect, resp, unknown)
		}
		if leaseID != 0 && errors.Is(rpctypes.Error(err), rpctypes.ErrLeaseNotFound) && attempt < 3 {
			s.dropLease(w.TTLSeconds, leaseID)
			continue
		}
		if refused(err) && !unknown && (!dropped(err) || time.Now().Add(wait).After(deadline)) {
			return store.Verdict{Err: s.failure(ctx, "write "+w.Key, err)}
		}
		if s.closed.Load() || errors.Is(rpctypes.Error(err), rpctypes.ErrStopped) || time.Now().Add(wait).After(deadline) {
			return store.Verdict{Err: fmt.Errorf("write %s: %w: %w", w.Key, store.ErrUnknownOutcome, err)}
		}
		<-time.After(wait)
		if !dropped(err) { // otherwise wait for a leader
			wait = min(2*wait, 200*time.Millisecond)
		}
		switch {
		case refused(err):
		case creates:
			if v, known := s.settleCreate(ctx, w, before, guard, deadline); known {
				return v
			}
		default:
			unknown = true
		}
	}
}

func (s *Store) propose(ctx context.Context, w *store.Write, req *pb.TxnRequest, attempt int) (*pb.TxnResponse, error) {
	ctx, cancel := s.proposal(ctx)
	defer cancel()
	send := func() (*pb.TxnResponse, error) { return s.kv.Txn(ctx, req) }
	if s.fault != nil {
		return s.fault(w, attempt, send)
	}
	switch failpoint.At(failpoint.Etcd) {
	case failpoint.Refuse:
		return nil, rpctypes.ErrGRPCRequestTooManyRequests
	case failpoint.LoseRequest:
		return nil, rpctypes.ErrGRPCTimeout
	case failpoint.LoseAnswer:
		if _, err := send(); err != nil {
			return nil, err
		}
		return nil, rpctypes.ErrGRPCTimeout
	}
	return send()
}

// txn returns the write as a transaction: if the key has the revision (and the fence holds), it
// writes, otherwise it reads what is stored.
func txn(w *store.Write, expect int64, lease clientv3.LeaseID) *pb.TxnRequest {
	key := []byte(w.Key)
	req := &pb.TxnRequest{
		Compare: []*pb.Compare{modified(key, expect)},
		Failure: []*pb.RequestOp{read(key)},
	}
	if w.Value != nil {
		req.Success = []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: w.Value, Lease: int64(lease)}}}}
	} else {
		req.Success = []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}}}
	}
	for _, f := range [2]*store.Fence{w.Fence, w.Period} {
		if f != nil {
			key := []byte(f.Key)
			req.Compare = append(req.Compare, modified(key, int64(f.ModRevision)))
			req.Failure = append(req.Failure, read(key))
		}
	}
	return req
}

func modified(key []byte, rev int64) *pb.Compare {
	return &pb.Compare{
		Key:         key,
		Target:      pb.Compare_MOD,
		Result:      pb.Compare_EQUAL,
		TargetUnion: &pb.Compare_ModRevision{ModRevision: rev},
	}
}

func read(key []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}}
}

// judge returns the verdict of a transaction that was answered. unknown reports whether an
// earlier attempt of the same write may have been applied.
func judge(w *store.Write, expect int64, resp *pb.TxnResponse, unknown bool) store.Verdict {
	if resp.Succeeded {
		if w.Value == nil && expect == 0 { // nothing to delete
			return store.Verdict{Err: store.ErrNotFound}
		}
		return store.Verdict{Revision: store.Revision(resp.Header.Revision)}
	}
	kv := found(resp, 0)
	if unknown {
		switch {
		case kv != nil && w.Value != nil && w.Settled != nil && w.Settled(kv.Value):
			return store.Verdict{Revision: store.Revision(kv.ModRevision)}
		case kv != nil && w.Value == nil && kv.CreateRevision <= expect:
			// The key was changed, but not deleted since: no attempt was applied.
		case kv != nil && kv.ModRevision == expect, kv == nil && expect == 0:
			// The key is unchanged, so no attempt was applied: this one failed because of the
			// fence.
		default:
			return store.Verdict{Err: store.ErrUnknownOutcome}
		}
	}
	at := 0 // of the read in the response
	for _, f := range [2]*store.Fence{w.Fence, w.Period} {
		if f == nil {
			continue
		}
		at++
		var rev int64
		if kv := found(resp, at); kv != nil {
			rev = kv.ModRevision
		}
		if rev != int64(f.ModRevision) {
			return store.Verdict{Err: store.ErrFenced}
		}
	}
	switch {
	case kv == nil:
		return store.Verdict{Err: store.ErrNotFound}
	case expect == 0:
		e := entry(kv)
		return store.Verdict{Err: store.ErrExists, Current: &e}
	default:
		e := entry(kv)
		return store.Verdict{Err: store.ErrConflict, Current: &e}
	}
}

// found returns the entry that the i-th request of a failed transaction read, or nil.
func found(resp *pb.TxnResponse, i int) *mvccpb.KeyValue {
	if i >= len(resp.Responses) {
		return nil
	}
	if kvs := resp.Responses[i].GetResponseRange().GetKvs(); len(kvs) > 0 {
		return kvs[0]
	}
	return nil
}

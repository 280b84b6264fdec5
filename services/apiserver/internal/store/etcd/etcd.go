// Package etcd is store.Store over etcd: embedded in this process and called
// without its port (Start), or elsewhere (Dial).
//
// Each write is a transaction of its own that compares the key's revision, so
// that one object has one revision; the writes of a batch are pipelined and share
// the disk's syncs. A proposal has a deadline of its own; when it passes, the
// outcome is unknown and is settled by repeating the same conditional write.
//
// # Members
//
// One member alone speaks to nobody. Several (EmbeddedConfig.Peers) find each other
// by seats: a seat is a name and a disk, and etcd's peer URL unix://<seat> is made of
// it, so that no URL ever changes. etcd dials a socket of that name in the process's
// working directory; this package carries the bytes over mutual TLS to where the
// seat's member is now. Both sides must have certificates of the cluster's authority
// and of a member's common name, and the protocol names the seat, so that whoever has
// an address by now does not answer for who had it before. Where members are they
// tell each other, without quorum (cards); each keeps what it heard on its disk, and
// tries what its configuration says too. So all may stop and start with other
// addresses, as long as the ways that are known, from either side, connect them all.
//
// A member's states, from an empty disk:
//
//	fresh    no data. It founds a cluster with exactly the configured members if all of
//	         them are there and fresh too (or are founding this very cluster); if any
//	         has a cluster without this seat, it waits to be let in; else it waits.
//	learner  let in (AddLearner), without a vote, while it catches up.
//	voter    a founder, or promoted (Promote) once it has started and caught up.
//	removed  (Remove) its etcd ends when it hears of it, and refuses to start.
//
// What happens when things fail:
//
//   - The leader dies: followers miss it after Election to twice that, 0.5 to 1 s.
//     Reads are repeated for readTime, 6 s. A proposal ends with its deadline of 1 s or
//     0.1 s after there is a new leader; then its outcome is settled by repeating it,
//     for settleTime, 12 s. A proposal that found no leader was not made and is just
//     repeated. No call waits longer for members than settleTime and one proposal.
//   - The quorum is lost: reads fail after readTime, writes with a failure (never
//     proposed) or with ErrUnknownOutcome after settleTime. Watches stand still; who
//     needs to know how old they are asks Revision.
//   - A member comes back with another address: it tells the others.
//   - A disk is lost: the member is fresh, with another seat, and waits for Replace.
//     Part of a disk is refused at the start.
//   - The quorum is lost for good: Recover makes a cluster of one from a survivor, in
//     a later era. Cards carry the era: a member with data that hears of a later one
//     was given up, ends, and notes that it must not start with that disk; nobody
//     takes cards of an era that is not its own, but from fresh members.
//
// Invariants of members:
//
//   - No seat's member forgets its log or its votes: without them it is another seat.
//   - A cluster is founded once: a fresh member never founds one while a configured
//     member is silent or has data.
//   - Who has a vote has started with its seat: Promote waits for that.
//   - No member of an era runs on once it has heard of a later one.
//   - After Recover, no revision means what it did not mean before: it jumps ahead and
//     all history is compacted.
//
// It must never send an unconditional write: a proposal may be applied long after
// its deadline, and only its condition keeps it from overwriting what came later.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.dev/services/apiserver/internal/store"
)

// Limits that are etcd's or follow from measurements.
const (
	// inFlight is the number of proposals under way at once. etcd refuses more
	// than 5,000; throughput does not grow beyond a few hundred.
	inFlight = 1000
	// forwardTime is how long one proposal may take before it is repeated, where it
	// may be forwarded to a leader that dies: it would wait for about 7 s.
	forwardTime = time.Second
	// localTime is the same where nobody else can be the leader: only the disk and
	// the processor can be slow, and repeating does not help them.
	localTime = 6 * time.Second
	// settleTime is how long a write whose outcome is unknown is repeated.
	settleTime = 12 * time.Second
	// anyTries is how often a write with store.Any follows a key that others
	// change.
	anyTries = 32
)

// transport is what differs between an etcd in this process and one elsewhere.
type transport struct {
	// local says that no answer comes from another process.
	local bool
	kv    pb.KVClient
	lease clientv3.Lease
	// revision returns the newest revision, linearizably.
	revision func(ctx context.Context) (int64, error)
	watch    func(ctx context.Context, prefix string, from int64) (store.Watch, error)
}

// Store is a store in etcd.
type Store struct {
	transport
	log    *slog.Logger
	slots  chan struct{}
	leases leases
	// compacted is the last revision that this store compacted at.
	compacted atomic.Int64
	closed    atomic.Bool
	// seen is the newest revision that this store was told of.
	seen  atomic.Int64
	guard guard
	// term ends a moment after another member has become the leader: what was sent
	// to the one before may be lost.
	term atomic.Pointer[term]

	proposalTime, settleTime time.Duration
	// fault, if set, stands between the store and etcd; for tests.
	fault func(w *store.Write, attempt int, send func() (*pb.TxnResponse, error)) (*pb.TxnResponse, error)
}

func newStore(t transport, proposalTime time.Duration, log *slog.Logger) *Store {
	if log == nil {
		log = slog.Default()
	}
	s := &Store{
		guard:        newGuard(),
		transport:    t,
		log:          log,
		slots:        make(chan struct{}, inFlight),
		proposalTime: proposalTime,
		settleTime:   settleTime,
	}
	s.newTerm()
	return s
}

// saw notes a revision.
func (s *Store) saw(rev int64) {
	for old := s.seen.Load(); old < rev && !s.seen.CompareAndSwap(old, rev); old = s.seen.Load() {
	}
}

// rangeStart is the first key of the range of keys with a prefix.
func rangeStart(prefix string) []byte {
	if prefix == "" {
		return []byte{0}
	}
	return []byte(prefix)
}

// rangeEnd is the end of the range of keys with a prefix.
func rangeEnd(prefix string) []byte { return []byte(clientv3.GetPrefixRangeEnd(prefix)) }

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, store.Revision, error) {
	resp, err := s.read(ctx, &pb.RangeRequest{Key: []byte(key)})
	if err != nil {
		return store.Entry{}, 0, s.failure(ctx, "get "+key, err)
	}
	rev := store.Revision(resp.Header.Revision)
	if len(resp.Kvs) == 0 {
		return store.Entry{}, rev, store.ErrNotFound
	}
	return entry(resp.Kvs[0]), rev, nil
}

func entry(kv *mvccpb.KeyValue) store.Entry {
	v := kv.Value
	if v == nil {
		v = []byte{}
	}
	return store.Entry{
		Key:            string(kv.Key),
		Value:          v,
		ModRevision:    store.Revision(kv.ModRevision),
		CreateRevision: store.Revision(kv.CreateRevision),
	}
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, o store.ListOptions) (store.Page, error) {
	req := &pb.RangeRequest{Key: rangeStart(prefix), RangeEnd: rangeEnd(prefix), Limit: o.Limit, Revision: int64(o.Revision)}
	within := strings.HasPrefix(o.After, prefix)
	switch {
	case o.After == "" || (!within && o.After < prefix):
		within = false
	default:
		req.Key = []byte(o.After + "\x00")
	}
	var resp *pb.RangeResponse
	var err error
	if within || o.After == "" || o.After < prefix {
		resp, err = s.read(ctx, req)
	} else { // After lies behind the whole range
		req.Key, req.Limit, req.CountOnly = rangeStart(prefix), 0, true
		resp, err = s.read(ctx, req)
		within = false
	}
	if err != nil {
		return store.Page{}, s.failure(ctx, "list "+prefix, err)
	}
	page := store.Page{More: resp.More, Count: resp.Count, Revision: o.Revision}
	if page.Revision == 0 {
		page.Revision = store.Revision(resp.Header.Revision)
	}
	if within { // Count covers what is left only
		all, err := s.read(ctx, &pb.RangeRequest{Key: rangeStart(prefix), RangeEnd: rangeEnd(prefix), Revision: int64(page.Revision), CountOnly: true})
		if err != nil {
			return store.Page{}, s.failure(ctx, "list "+prefix, err)
		}
		page.Count = all.Count
	}
	page.Entries = make([]store.Entry, len(resp.Kvs))
	for i, kv := range resp.Kvs {
		page.Entries[i] = entry(kv)
	}
	return page, nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after store.Revision) (store.Watch, error) {
	if s.closed.Load() {
		return nil, store.ErrClosed
	}
	if after == 0 {
		var err error
		if after, err = s.Revision(ctx); err != nil {
			return nil, err
		}
	}
	return s.watch(ctx, prefix, int64(after)+1)
}

// Revision implements store.Store.
func (s *Store) Revision(ctx context.Context) (store.Revision, error) {
	if s.closed.Load() {
		return 0, store.ErrClosed
	}
	var rev int64
	err := s.repeat(ctx, attemptTime, func(ctx context.Context) (err error) {
		rev, err = s.revision(ctx)
		return err
	})
	if err != nil {
		return 0, s.failure(ctx, "read revision", err)
	}
	s.saw(rev)
	return store.Revision(rev), nil
}

// Compact implements store.Store.
func (s *Store) Compact(ctx context.Context, rev store.Revision) error {
	_, err := s.kv.Compact(ctx, &pb.CompactionRequest{Revision: int64(rev), Physical: true})
	if errors.Is(rpctypes.Error(err), rpctypes.ErrCompacted) {
		return nil
	}
	if err != nil {
		return s.failure(ctx, fmt.Sprintf("compact at %d", rev), err)
	}
	for old := s.compacted.Load(); old < int64(rev) && !s.compacted.CompareAndSwap(old, int64(rev)); old = s.compacted.Load() {
	}
	return nil
}

// failure turns etcd's error into the store's.
func (s *Store) failure(ctx context.Context, doing string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch e := rpctypes.Error(err); {
	case errors.Is(e, rpctypes.ErrCompacted):
		return &store.CompactedError{Oldest: store.Revision(s.compacted.Load())}
	case errors.Is(e, rpctypes.ErrFutureRev):
		return store.ErrFutureRevision
	case errors.Is(e, rpctypes.ErrStopped), s.closed.Load():
		return store.ErrClosed
	case errors.Is(e, rpctypes.ErrTooManyRequests):
		return fmt.Errorf("%s: %w", doing, store.ErrTooMany)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// refused tells the errors after which nothing was, nor will be, written.
func refused(err error) bool {
	if dropped(err) {
		return true
	}
	var e rpctypes.EtcdError
	if errors.As(rpctypes.Error(err), &e) {
		switch {
		case errors.Is(e, rpctypes.ErrTooManyRequests), errors.Is(e, rpctypes.ErrNoSpace),
			errors.Is(e, rpctypes.ErrRequestTooLarge), errors.Is(e, rpctypes.ErrLeaseNotFound),
			errors.Is(e, rpctypes.ErrCorrupt):
			return true
		}
		switch e.Code() {
		case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated:
			return true
		}
	}
	return false
}

// dropped tells that there was no leader to propose to: nothing was written.
func dropped(err error) bool {
	return status.Code(err) == codes.Unknown && strings.Contains(err.Error(), "raft proposal dropped") ||
		errors.Is(rpctypes.Error(err), rpctypes.ErrNoLeader)
}

// leases are shared by entries that expire at about the same time.
type leases struct {
	mu    sync.Mutex
	byTTL map[int64]*lease
}

type lease struct {
	once sync.Once
	id   clientv3.LeaseID
	err  error
	// until is when entries of this TTL need a new lease.
	until time.Time
}

// slack is how much longer than asked an entry may live, in seconds.
func slack(ttl int64) int64 { return min(60, max(1, ttl/4)) }

// leaseOf is the lease for a write; 0 if its value does not expire.
func (s *Store) leaseOf(ctx context.Context, w *store.Write) (clientv3.LeaseID, error) {
	if w.TTLSeconds <= 0 || w.Value == nil {
		return 0, nil
	}
	return s.lease(ctx, w.TTLSeconds)
}

func (s *Store) lease(ctx context.Context, ttl int64) (clientv3.LeaseID, error) {
	ls := &s.leases
	ls.mu.Lock()
	l := ls.byTTL[ttl]
	if l == nil || time.Now().After(l.until) {
		if ls.byTTL == nil {
			ls.byTTL = map[int64]*lease{}
		}
		l = &lease{until: time.Now().Add(time.Duration(slack(ttl)) * time.Second)}
		ls.byTTL[ttl] = l
	}
	ls.mu.Unlock()
	l.once.Do(func() {
		ctx, cancel := s.proposal(ctx)
		defer cancel()
		var resp *clientv3.LeaseGrantResponse
		if resp, l.err = s.transport.lease.Grant(ctx, ttl+slack(ttl)); l.err == nil {
			l.id = resp.ID
		}
	})
	if l.err != nil {
		s.dropLease(ttl, l.id)
		return 0, fmt.Errorf("grant lease: %w", l.err)
	}
	return l.id, nil
}

// dropLease forgets a lease that is gone or was not granted.
func (s *Store) dropLease(ttl int64, id clientv3.LeaseID) {
	s.leases.mu.Lock()
	defer s.leases.mu.Unlock()
	if l := s.leases.byTTL[ttl]; l != nil && l.id == id {
		delete(s.leases.byTTL, ttl)
	}
}

// Package etcd is store.Store over etcd: embedded in this process and called directly (Start),
// or at another place (Dial).
//
// Each write is a transaction of its own that compares the key's revision, so that one object
// has one revision. The writes of a batch are pipelined and share the disk's syncs. A proposal
// has a deadline. When it passes, the outcome is unknown and is resolved by repeating the same
// conditional write.
//
// # Members
//
// A single member has no peers. Several members (EmbeddedConfig.Peers) know each other by
// seats. A seat is a name and a disk; etcd's peer URL unix://<seat> is derived from it, so that
// URLs never change. etcd dials a socket of that name in the process's working directory, and
// this package relays the bytes over mutual TLS to the seat's current address. Both sides must
// have certificates of the cluster's authority with a common name of members, and the protocol
// name contains the seat, so that a process that has taken over an address does not answer for
// the member that had it before.
//
// Members announce their addresses to each other without a quorum (cards). Each saves those
// that it receives on its disk, and also tries those in its configuration. All members may
// therefore stop and start with other addresses, as long as the addresses that are known to
// either side of each connection connect them all.
//
// # States of a member
//
// The states of a member, from an empty disk:
//
//	fresh    it has no data. It founds a cluster with exactly the configured members if all
//	         of them are reachable and fresh too (or are founding this very cluster). If any of
//	         them has a cluster without this seat, it waits to be added; otherwise it waits.
//	learner  it was added (AddLearner), and has no vote while it catches up.
//	voter    it is a founder, or was promoted (Promote) after it had started and caught up.
//	removed  (Remove) its etcd stops when it learns of it, and does not start again.
//
// # Failures
//
//   - The leader dies: followers notice after one to two times Election, 0.5 to 1 s. Reads are
//     repeated for readTime, 6 s. A proposal ends with its deadline of 1 s, or 0.1 s after
//     there is a new leader; then its outcome is resolved by repeating it for settleTime, 12 s.
//     A proposal that found no leader was not made and is simply repeated. No call waits longer
//     for members than settleTime and one proposal.
//   - The quorum is lost: reads fail after readTime. Writes fail after settleTime, with
//     ErrUnknownOutcome if they were proposed. Watches stay open without events; Revision
//     returns how current they are.
//   - A member comes back with another address: it announces it to the others.
//   - A disk is lost: the member is fresh, with another seat, and waits for Replace. If only
//     part of a disk is lost, the member does not start.
//   - The quorum is lost permanently: Recover makes a cluster of one member from a survivor, in
//     a later era. Cards contain the era. A member with data that learns of a later era was
//     given up as lost: it stops, and records that it must not start with that disk again.
//     Cards of another era are only accepted from fresh members.
//
// # Invariants of members
//
//   - No member of a seat loses its log or its votes: without them it is another seat.
//   - A cluster is founded once: a fresh member never founds one while a configured member does
//     not answer or has data.
//   - A member that votes has started with its seat: Promote waits for that.
//   - No member of an era keeps running once it has learned of a later one.
//   - After Recover, no revision gets a second meaning: the revision jumps ahead, and all
//     history is compacted.
//
// The package must never send an unconditional write of an object: a proposal may be applied
// long after its deadline, and only its condition keeps it from overwriting a later write.
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

// Limits that etcd imposes or that follow from measurements.
const (
	// inFlight bounds the proposals in flight. etcd refuses more than 5,000, and throughput
	// does not grow beyond a few hundred.
	inFlight = 1000
	// forwardTime bounds one proposal, if it may be forwarded to a leader that dies: etcd would
	// let it wait for about 7 s.
	forwardTime = time.Second
	// localTime is the same if no other member can be the leader. Then only the disk and the
	// CPU can be slow, and repeating does not help.
	localTime = 6 * time.Second
	// settleTime bounds how long a write with an unknown outcome is repeated.
	settleTime = 12 * time.Second
	// anyTries bounds how often a write with store.Any is repeated because other writes change
	// the key.
	anyTries = 32
)

// transport is what differs between an etcd server in this process and one at another place.
type transport struct {
	// local is true if all calls are answered in this process.
	local bool
	kv    pb.KVClient
	lease clientv3.Lease
	// revision returns the newest revision. It is linearizable.
	revision func(ctx context.Context) (int64, error)
	watch    func(ctx context.Context, prefix string, from int64) (store.Watch, error)
}

// Store is a store in etcd.
type Store struct {
	transport
	log    *slog.Logger
	slots  chan struct{}
	leases leases
	// compacted is the last revision at which this store compacted.
	compacted atomic.Int64
	closed    atomic.Bool
	// seen is the newest revision that this store has received.
	seen  atomic.Int64
	guard guard
	// term is ended shortly after another member has become the leader: what was sent to the
	// previous leader may be lost.
	term atomic.Pointer[term]

	proposalTime, settleTime time.Duration
	// fault, if set, is called instead of etcd. For tests.
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

// saw records a revision.
func (s *Store) saw(rev int64) {
	for old := s.seen.Load(); old < rev && !s.seen.CompareAndSwap(old, rev); old = s.seen.Load() {
	}
}

// rangeStart returns the first key of the range of keys with a prefix.
func rangeStart(prefix string) []byte {
	if prefix == "" {
		return []byte{0}
	}
	return []byte(prefix)
}

// rangeEnd returns the end of the range of keys with a prefix.
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
	} else { // After is beyond the whole range
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
	if within { // Count covers only the rest
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

// failure converts an error of etcd to one of package store.
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
	case errors.Is(e, rpctypes.ErrNoSpace):
		return fmt.Errorf("%s: %w", doing, store.ErrNoSpace)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// refused reports whether err means that nothing was or will be written.
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

// dropped reports whether err means that there was no leader to propose to: nothing was
// written.
func dropped(err error) bool {
	return status.Code(err) == codes.Unknown && strings.Contains(err.Error(), "raft proposal dropped") ||
		errors.Is(rpctypes.Error(err), rpctypes.ErrNoLeader)
}

// leases are the leases of etcd, shared by entries that expire at about the same time.
type leases struct {
	mu    sync.Mutex
	byTTL map[int64]*lease
}

type lease struct {
	once sync.Once
	id   clientv3.LeaseID
	err  error
	// until is the time from which entries of this TTL need a new lease.
	until time.Time
}

// slack returns how much longer than requested an entry may live, in seconds.
func slack(ttl int64) int64 { return min(60, max(1, ttl/4)) }

// leaseOf returns the lease for a write, or 0 if its value does not expire.
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

// dropLease forgets a lease that has expired or was not granted.
func (s *Store) dropLease(ttl int64, id clientv3.LeaseID) {
	s.leases.mu.Lock()
	defer s.leases.mu.Unlock()
	if l := s.leases.byTTL[ttl]; l != nil && l.id == id {
		delete(s.leases.byTTL, ttl)
	}
}

package raft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	"google.golang.org/grpc"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

// Limits of keys and values.
const (
	// maxValue is the size of the largest value, in bytes.
	maxValue = 4 << 20
	// maxKey is the length of the longest key, in bytes.
	maxKey = 4 << 10
)

// Bound limits what is stored under a prefix. When it is exceeded, the entries that were
// written the longest ago are deleted. Watches see these deletions.
type Bound struct {
	Prefix string
	// Entries and Bytes (of keys and values) are the limits. 0 means no limit.
	Entries, Bytes int64
}

// Membership reports which members the store has.
type Membership interface {
	// Names returns the names of the members, as far as they are known here. It must be cheap.
	Names() []string
	// Gone reports whether it is certain that a name is not a member's any more.
	Gone(ctx context.Context, name string) (bool, error)
}

// Timing configures elections. A zero field means the default.
type Timing struct {
	// Election is how long a member waits without hearing from the leader before it stands for
	// election; default 300 ms. A single member does so at once.
	Election time.Duration
	// Commit bounds how long an idle follower may not know the last commit; default 20 ms.
	Commit time.Duration
}

// Config configures a member.
type Config struct {
	// Name is the name of this member: not empty, without a slash, and the same after a
	// restart.
	Name string
	// Members are the names of all members, including this one. Members that are new here are
	// added; members that are missing here are not removed.
	Members []string
	// Follow, if set, decides the membership in place of Members once the store is founded:
	// members that are new there are added, and those that are missing there are removed.
	Follow Membership
	// Join means that the store was founded by others, so this member must not found one.
	Join bool
	// Dir holds the member's log and snapshots. It is created with mode 0700.
	Dir string
	// Dial returns a connection to another member. The store closes it if it has a Close
	// method.
	Dial func(member string) (grpc.ClientConnInterface, error)
	// Service is what the other members call. If there are others, it must be served before
	// Open is called.
	Service *Service
	// Bounds are the bounds of prefixes. Those of the leader apply.
	Bounds []Bound
	// FencesElsewhere is a prefix of fence keys that another store keeps, such as
	// "/keelson/fence/". This store learns their revisions from the writes that carry them.
	FencesElsewhere string
	// HistoryEvents and HistoryBytes bound how far back watches and lists can go; defaults
	// 50,000 and 16 MiB.
	HistoryEvents int
	HistoryBytes  int64
	// SnapshotBytes is the size of the log after which a snapshot is taken, or the size of the
	// state if that is larger; default 64 MiB.
	SnapshotBytes int64
	Timing        Timing
	Log           *slog.Logger

	// For tests.
	wrapLog    func(*logStore) durable
	bolt       bbolt.Options
	settleTime time.Duration
	failed     func(error) // called instead of ending the process
}

// durable is the part of the library's storage that must survive crashes.
type durable interface {
	hraft.LogStore
	hraft.StableStore
}

func (c *Config) defaults() error {
	if c.Name == "" || nameOf(hraft.ServerID(c.Name)) != c.Name {
		return fmt.Errorf("%q is not a valid name of a member", c.Name)
	}
	if len(c.Members) == 0 {
		c.Members = []string{c.Name}
	}
	c.Members = slices.Clone(c.Members)
	slices.Sort(c.Members)
	if !slices.Contains(c.Members, c.Name) {
		return fmt.Errorf("%s is not among the members %v", c.Name, c.Members)
	}
	if len(slices.Compact(slices.Clone(c.Members))) != len(c.Members) {
		return fmt.Errorf("a name occurs twice among the members %v", c.Members)
	}
	if len(c.Members) > 1 && (c.Dial == nil || c.Service == nil) {
		return errors.New("Service and Dial are required if there are several members")
	}
	if c.Service == nil {
		c.Service = NewService(func(context.Context) error { return nil })
	}
	if c.Dial == nil {
		c.Dial = func(member string) (grpc.ClientConnInterface, error) {
			return nil, fmt.Errorf("cannot reach member %s: no Dial function", member)
		}
	}
	if c.Timing.Election <= 0 {
		c.Timing.Election = 300 * time.Millisecond
	}
	if c.Timing.Commit <= 0 {
		c.Timing.Commit = 20 * time.Millisecond
	}
	if c.HistoryEvents <= 0 {
		c.HistoryEvents = 50_000
	}
	if c.HistoryBytes <= 0 {
		c.HistoryBytes = 16 << 20
	}
	if c.SnapshotBytes <= 0 {
		c.SnapshotBytes = 64 << 20
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
	return checkBounds(c.bounds())
}

func (c *Config) bounds() (out []*raftv1.Bound) {
	for _, b := range c.Bounds {
		out = append(out, &raftv1.Bound{Prefix: b.Prefix, Entries: b.Entries, Bytes: b.Bytes})
	}
	return out
}

// Store is a member of the raft store.
type Store struct {
	cfg       Config
	id        hraft.ServerID
	log       *slog.Logger
	disk      *logStore
	transport *transport
	raft      *hraft.Raft
	machine   *machine
	proposals *proposals // to this member's log
	forwards  *proposals // to the leader
	began     time.Time

	// session and sequence identify each attempt to write.
	session  uint64
	sequence atomic.Uint64

	// ready is the last term in which this member led and had applied everything that was
	// committed before.
	ready    atomic.Uint64
	confirms shared[uint64]
	asks     shared[uint64]
	calls    sync.WaitGroup // requests of confirm

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	closed atomic.Bool
	once   sync.Once

	settleTime, localTime, forwardTime time.Duration
	// fault, if set, returns what happens to an attempt to write. For tests.
	fault func(w *store.Write, attempt int) fault
}

// Open opens the member in cfg.Dir, or creates it, and waits until the store can be read.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.defaults(); err != nil {
		return nil, fmt.Errorf("raft store: %w", err)
	}
	s := &Store{
		cfg: cfg, log: cfg.Log, began: time.Now(), session: rand.Uint64(),
		settleTime: settleTime, localTime: localTime, forwardTime: forwardTime,
	}
	if cfg.settleTime > 0 {
		s.settleTime = cfg.settleTime
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	if err := s.start(); err != nil {
		s.cancel()
		return nil, fmt.Errorf("raft store in %s: %w", cfg.Dir, err)
	}
	for {
		_, err := s.Revision(ctx)
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil {
			s.Close()
			return nil, fmt.Errorf("raft store in %s: %w", cfg.Dir, err)
		}
	}
}

// start opens the files and starts the library.
func (s *Store) start() (err error) {
	if err := makeDir(s.cfg.Dir); err != nil {
		return err
	}
	if s.disk, err = openLog(s.cfg.Dir, s.cfg.bolt); err != nil {
		return err
	}
	s.disk.failed = s.cfg.failed
	if s.disk.failed == nil {
		s.disk.failed = func(err error) {
			s.log.ErrorContext(s.ctx, "ending this process: a write to the disk of the raft store failed, and its data must be read again", "error", err, "directory", s.cfg.Dir)
			os.Exit(1)
		}
	}
	s.id = serverID(s.cfg.Name, s.disk.id)
	defer func() {
		if err != nil {
			_ = s.disk.close()
		}
	}()
	var disks durable = s.disk
	if s.cfg.wrapLog != nil {
		disks = s.cfg.wrapLog(s.disk)
	}
	log := &hlog{log: s.log}
	snapshots, err := openSnapshots(s.cfg.Dir, log)
	if err != nil {
		return err
	}
	cache, err := hraft.NewLogCache(maxAppend, disks)
	if err != nil {
		return err
	}
	existing, err := hraft.HasExistingState(disks, disks, snapshots)
	if err != nil {
		return err
	}
	s.machine = newMachine(s.cfg.HistoryEvents, s.cfg.HistoryBytes)
	s.transport = newTransport(s.id, s.cfg.Dial)
	s.raft, err = hraft.NewRaft(s.library(log), s.machine, cache, disks, snapshots, s.transport)
	if err != nil {
		return err
	}
	s.proposals = newProposals(entriesInFlight, s.lead)
	s.forwards = newProposals(forwardsInFlight, s.follow)
	s.cfg.Service.store.Store(s)
	s.wg.Go(func() {
		if !existing && s.bootstrap() || s.alone() {
			s.hurry()
		}
	})
	s.wg.Go(s.upkeep)
	if len(s.cfg.Members) > 1 || s.cfg.Follow != nil {
		s.wg.Go(s.takeIn)
	}
	return nil
}

// hurry makes a member that founded the cluster, or is its only voter, stand for election at
// once.
func (s *Store) hurry() {
	now := &hraft.TimeoutNowRequest{RPCHeader: hraft.RPCHeader{ProtocolVersion: hraft.ProtocolVersionMax}}
	if _, err := s.transport.handle(s.ctx, now, nil); err != nil {
		s.log.DebugContext(s.ctx, "the raft store waits for an election", "error", err)
	}
}

// maxAppend bounds the entries of one request. Each of them may have entryBytes.
const maxAppend = 64

// library returns the configuration of the library.
func (s *Store) library(log *hlog) *hraft.Config {
	c := hraft.DefaultConfig()
	c.LocalID = s.id
	c.HeartbeatTimeout, c.ElectionTimeout = s.cfg.Timing.Election, s.cfg.Timing.Election
	c.LeaderLeaseTimeout = s.cfg.Timing.Election * 2 / 3
	c.CommitTimeout = s.cfg.Timing.Commit
	c.MaxAppendEntries = maxAppend
	c.BatchApplyCh = true
	c.ShutdownOnRemove = false
	c.TrailingLogs = 256
	c.SnapshotThreshold = 8192
	c.SnapshotInterval = time.Minute
	c.NoLegacyTelemetry = true
	c.Logger = log.logger()
	return c
}

// clock returns a monotonic time in milliseconds.
func (s *Store) clock() int64 { return time.Since(s.began).Milliseconds() }

// HandOver transfers leadership to another member, if this one leads and there is another. It
// takes at most the time of an election.
func (s *Store) HandOver() error {
	if s.raft.State() != hraft.Leader || len(s.voters()) < 2 {
		return nil
	}
	return s.raft.LeadershipTransfer().Error()
}

// Close stops the member. A leader first tries to hand over.
func (s *Store) Close() {
	s.once.Do(func() {
		_ = s.HandOver()
		s.closed.Store(true)
		s.cancel()
		// The library answers only while it runs, so everything that waits for it must end
		// first.
		s.forwards.close()
		s.proposals.close()
		s.wg.Wait()
		s.confirms.end()
		s.asks.end()
		s.calls.Wait()
		s.transport.stop()
		if err := s.raft.Shutdown().Error(); err != nil {
			s.log.WarnContext(s.ctx, "the raft store did not shut down cleanly", "error", err)
		}
		s.machine.close()
		s.cfg.Service.store.CompareAndSwap(s, nil)
		if err := s.disk.close(); err != nil {
			s.log.WarnContext(s.ctx, "the raft store did not shut down cleanly", "error", err)
		}
	})
}

// Member is a member of the store.
type Member struct {
	Name, ID string
	Voter    bool
}

// Status is the status of a member.
type Status struct {
	ID, Leader string // ids; Leader is empty if no leader is known
	Term       uint64
	// Applied is the index of the last applied log entry, and Last that of the last entry in
	// the log.
	Applied, Last uint64
	Revision      store.Revision
	Members       []Member
	Entries       int
	Bytes         int64
}

// Status returns the status of this member.
func (s *Store) Status() Status {
	_, leader := s.raft.LeaderWithID()
	st := Status{ID: string(s.id), Leader: string(leader), Term: s.raft.CurrentTerm(), Last: s.raft.LastIndex()}
	for _, server := range s.servers() {
		st.Members = append(st.Members, Member{Name: nameOf(server.ID), ID: string(server.ID), Voter: server.Suffrage == hraft.Voter})
	}
	s.machine.mu.RLock()
	defer s.machine.mu.RUnlock()
	st.Applied, st.Revision, st.Entries, st.Bytes = s.machine.applied, s.machine.rev, s.machine.keys.Len(), s.machine.size
	return st
}

// Health returns nil while this member can be read, that is, while it has a leader. It does
// not check other members.
func (s *Store) Health() error {
	if s.closed.Load() {
		return store.ErrClosed
	}
	if _, leader := s.raft.LeaderWithID(); leader == "" {
		return errNoLeader
	}
	return nil
}

// Voting returns nil while this member is healthy and votes, as far as it knows. While it
// fails, the others must not lose one of their votes.
func (s *Store) Voting(context.Context) error {
	if !slices.Contains(s.voters(), s.id) {
		return errors.New("this member of the raft store has no vote yet")
	}
	return s.Health()
}

// servers returns the newest membership that this member knows.
func (s *Store) servers() []hraft.Server {
	return s.raft.GetConfiguration().Configuration().Servers
}

func (s *Store) voters() (out []hraft.ServerID) {
	for _, server := range s.servers() {
		if server.Suffrage == hraft.Voter {
			out = append(out, server.ID)
		}
	}
	return out
}

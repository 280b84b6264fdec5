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

// Limits that callers can see.
const (
	// maxValue is the largest value that can be stored.
	maxValue = 4 << 20
	// maxKey is the longest key.
	maxKey = 4 << 10
)

// Bound limits what is stored under a prefix. The entries that were written
// longest ago go first, as deletions that a watch sees.
type Bound struct {
	Prefix string
	// Entries and Bytes (of keys and values); 0 is any number.
	Entries, Bytes int64
}

// Membership says who shall be a member.
type Membership interface {
	// Names are those of the members, as far as is known here; they cost nothing.
	Names() []string
	// Gone tells for certain that a name is no member's any more.
	Gone(ctx context.Context, name string) (bool, error)
}

// Timing of elections. Zero means the defaults.
type Timing struct {
	// Election is how long a member hears nothing from the leader before it stands
	// for election; default 300 ms. A member that is alone does so at once.
	Election time.Duration
	// Commit is how long an idle follower may not know what was committed last;
	// default 20 ms.
	Commit time.Duration
}

// Config of a member.
type Config struct {
	// Name of this member: not empty, without a slash, the same after a restart.
	Name string
	// Members are the names of all members, this one among them. A member that is
	// new here is taken in; one that is gone from here stays a member.
	Members []string
	// Follow, if set, says who shall be a member once the store is founded, in place
	// of Members: who is new there is taken in, who is gone from there is let go.
	Follow Membership
	// Join says that the store was founded by others: this member never does.
	Join bool
	// Dir holds the member's log and snapshots; made with mode 0700.
	Dir string
	// Dial makes the connection to another member. Connections that can be closed
	// are, with the store.
	Dial func(member string) (grpc.ClientConnInterface, error)
	// Service is what the others call; it must be served before Open, where there
	// are others.
	Service *Service
	// Bounds of prefixes. The leader's count.
	Bounds []Bound
	// FencesElsewhere is a prefix of fence keys that another store keeps, such as
	// "/keelson/fence/". Their revisions are taken from the writes that carry them.
	FencesElsewhere string
	// HistoryEvents and HistoryBytes bound how far back watches and lists reach;
	// defaults 50,000 and 16 MiB.
	HistoryEvents int
	HistoryBytes  int64
	// SnapshotBytes of log make a snapshot; default 64 MiB, or as much as there is
	// state.
	SnapshotBytes int64
	Timing        Timing
	Log           *slog.Logger

	// For tests.
	wrapLog    func(*logStore) durable
	bolt       bbolt.Options
	settleTime time.Duration
	failed     func(error) // instead of the end of the process
}

// durable is what has to last.
type durable interface {
	hraft.LogStore
	hraft.StableStore
}

func (c *Config) defaults() error {
	if c.Name == "" || nameOf(hraft.ServerID(c.Name)) != c.Name {
		return fmt.Errorf("name of a member: %q", c.Name)
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
		return fmt.Errorf("a member twice among %v", c.Members)
	}
	if len(c.Members) > 1 && (c.Dial == nil || c.Service == nil) {
		return errors.New("several members need a service and connections")
	}
	if c.Service == nil {
		c.Service = NewService(func(context.Context) error { return nil })
	}
	if c.Dial == nil {
		c.Dial = func(member string) (grpc.ClientConnInterface, error) {
			return nil, fmt.Errorf("no way to reach member %s", member)
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
	proposals *proposals // into this member's log
	forwards  *proposals // to the leader
	began     time.Time

	// session and sequence name each attempt to write.
	session  uint64
	sequence atomic.Uint64

	// ready is the last term in which this member led and had applied all that
	// was committed before.
	ready    atomic.Uint64
	confirms shared[uint64]
	asks     shared[uint64]
	calls    sync.WaitGroup // of confirms

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	closed atomic.Bool
	once   sync.Once

	settleTime, localTime, forwardTime time.Duration
	// fault, if set, says what happens to an attempt to write; for tests.
	fault func(w *store.Write, attempt int) fault
}

// Open opens the member in cfg.Dir, makes it where there is none, and waits until
// the store can be read.
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
			s.log.Error("raft store ends this process: its disk failed, and what is on it has to be read anew", "error", err, "directory", s.cfg.Dir)
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

// hurry lets a member that has founded the cluster, or is alone, stand for
// election without waiting to hear from others.
func (s *Store) hurry() {
	now := &hraft.TimeoutNowRequest{RPCHeader: hraft.RPCHeader{ProtocolVersion: hraft.ProtocolVersionMax}}
	if _, err := s.transport.handle(s.ctx, now, nil); err != nil {
		s.log.Debug("raft store waits for its election", "error", err)
	}
}

// maxAppend bounds the entries of one request; each may have entryBytes.
const maxAppend = 64

// library is the configuration of the library.
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

// clock counts milliseconds; it never goes back.
func (s *Store) clock() int64 { return time.Since(s.began).Milliseconds() }

// HandOver makes another member the leader, if this one leads and there is another. It
// is bounded by the time of an election.
func (s *Store) HandOver() error {
	if s.raft.State() != hraft.Leader || len(s.voters()) < 2 {
		return nil
	}
	return s.raft.LeadershipTransfer().Error()
}

// Close ends the member. A leader hands over first, if it can.
func (s *Store) Close() {
	s.once.Do(func() {
		_ = s.HandOver()
		s.closed.Store(true)
		s.cancel()
		// The library answers while it runs only, so everybody who waits for it
		// ends before it does.
		s.forwards.close()
		s.proposals.close()
		s.wg.Wait()
		s.confirms.end()
		s.asks.end()
		s.calls.Wait()
		s.transport.stop()
		if err := s.raft.Shutdown().Error(); err != nil {
			s.log.Warn("raft store did not end cleanly", "error", err)
		}
		s.machine.close()
		s.cfg.Service.store.CompareAndSwap(s, nil)
		if err := s.disk.close(); err != nil {
			s.log.Warn("raft store did not end cleanly", "error", err)
		}
	})
}

// Member is one of the store's members.
type Member struct {
	Name, ID string
	Voter    bool
}

// Status is how a member is.
type Status struct {
	ID, Leader string // ids; no leader is known where it is empty
	Term       uint64
	// Applied is the log index that reads of this member show, Last that of its
	// log.
	Applied, Last uint64
	Revision      store.Revision
	Members       []Member
	Entries       int
	Bytes         int64
}

// Status says how this member is.
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

// Health is nil while this member can be read: it knows a leader. It says nothing
// about others.
func (s *Store) Health() error {
	if s.closed.Load() {
		return store.ErrClosed
	}
	if _, leader := s.raft.LeaderWithID(); leader == "" {
		return errNoLeader
	}
	return nil
}

// Voting is nil while this member has a vote, as far as it knows: the others can do
// without one of theirs.
func (s *Store) Voting(context.Context) error {
	if !slices.Contains(s.voters(), s.id) {
		return errors.New("this member of the raft store has no vote yet")
	}
	return s.Health()
}

// servers is the membership, the newest that this member knows.
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

package raft

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/google/btree"
	hraft "github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
)

// The effect of a log entry depends on these constants, so members of different versions must
// agree on them: a change of one is a change of the format.
const (
	// format is the version of commands and snapshots.
	format = 1
	// maxStep is the longest time, in milliseconds, that one command may add to the log's time.
	// After a leader did not run for a while, entries do not expire at once whose owners could
	// not renew them in the meantime.
	maxStep = 30_000
	// slack, in milliseconds, is added to each time to live: the log's time starts when the
	// leader accepts a write, but its owner's when it receives the reply.
	slack = 1000
	// expireAtOnce bounds the entries that one command expires.
	expireAtOnce = 1000
	// maxCancelled and maxEpochs bound the cancellations and epochs that are remembered.
	maxCancelled = 1024
	maxEpochs    = 4096
)

// record is an entry of the key space. It is immutable.
type record struct {
	key          string
	value        []byte
	mod, created store.Revision
	deadline     int64 // in the log's time, in milliseconds; 0: it does not expire
}

func (r *record) entry() store.Entry {
	return store.Entry{Key: r.key, Value: r.value, ModRevision: r.mod, CreateRevision: r.created}
}

func (r *record) size() int64 { return int64(len(r.key) + len(r.value)) }

func byKey(a, b *record) bool { return a.key < b.key }
func byRev(a, b *record) bool { return a.mod < b.mod }
func byDeadline(a, b *record) bool {
	if a.deadline != b.deadline {
		return a.deadline < b.deadline
	}
	return a.mod < b.mod
}

// outcome is the result of an operation.
type outcome struct {
	code    raftv1.Outcome_Code
	rev     store.Revision
	current *record
}

// result is the result of a command: the outcomes of its operations, and its index.
type result struct {
	outcomes []outcome
	index    uint64
}

// bound is a limit of a prefix, with its current use.
type bound struct {
	*raftv1.Bound
	bytes int64
	byRev *btree.BTreeG[*record]
}

// state is what all members have in common. It depends only on the log.
type state struct {
	keys     *btree.BTreeG[*record]
	expiring *btree.BTreeG[*record]
	rev      store.Revision
	applied  uint64 // index of the last applied command
	// now is the log's time in milliseconds. It advances by the differences of a leader's clock
	// within one term, and not between two leaders.
	now, clock int64
	term       uint64
	// cancelled holds, per session, the sequence up to which attempts are cancelled, oldest
	// cancellation first.
	cancelled []*raftv1.Cancel
	epochs    map[string]store.Revision
	bounds    []*bound
	size      int64 // of the keys and values of all records, in bytes
}

func newState() *state {
	return &state{
		keys:     btree.NewG(32, byKey),
		expiring: btree.NewG(32, byDeadline),
		rev:      1,
		epochs:   map[string]store.Revision{},
	}
}

// machine is the state and the newest part of its history, guarded by a lock.
type machine struct {
	mu sync.RWMutex
	*state
	history history
	// changed is closed and replaced at each change.
	changed chan struct{}
	closed  bool
	// bytes is the size of the commands applied since the last snapshot.
	bytes int64
}

func newMachine(events int, bytes int64) *machine {
	return &machine{
		state:   newState(),
		history: history{maxEvents: events, maxBytes: bytes, compacted: 1},
		changed: make(chan struct{}),
	}
}

func (m *machine) signal() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// close wakes all waiters, which then fail with store.ErrClosed.
func (m *machine) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.closed = true
		close(m.changed)
	}
}

// Apply implements the library's FSM.
func (m *machine) Apply(l *hraft.Log) any { return m.ApplyBatch([]*hraft.Log{l})[0] }

// ApplyBatch implements the library's BatchingFSM.
func (m *machine) ApplyBatch(logs []*hraft.Log) []any {
	commands := make([]*raftv1.Command, len(logs))
	for i, l := range logs {
		if l.Type != hraft.LogCommand {
			continue
		}
		c, err := decode(l.Data)
		if err != nil {
			// Continuing would make this member differ from the others.
			panic(fmt.Sprintf("raft: log entry %d: %v", l.Index, err))
		}
		commands[i] = c
	}
	out := make([]any, len(logs))
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, l := range logs {
		if commands[i] != nil {
			out[i] = result{m.command(commands[i], l.Index, l.Term), l.Index}
			m.bytes += int64(len(l.Data))
		}
	}
	if !m.closed {
		m.signal()
	}
	return out
}

// decode decodes a command, and fails if it does not understand all of it.
func decode(data []byte) (*raftv1.Command, error) {
	c := &raftv1.Command{}
	if err := proto.Unmarshal(data, c); err != nil {
		return nil, err
	}
	if c.Format != format {
		return nil, fmt.Errorf("command of format %d, expected %d", c.Format, format)
	}
	if len(c.ProtoReflect().GetUnknown()) > 0 {
		return nil, errors.New("command of a newer version")
	}
	for _, op := range c.Operations {
		if err := check(op); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// check returns an error for an operation that no member may apply.
func check(op *raftv1.Operation) error {
	var inner interface {
		proto.Message
	}
	switch k := op.Kind.(type) {
	case *raftv1.Operation_Write:
		w := k.Write
		switch {
		case w == nil || w.Key == "":
			return errors.New("write without a key")
		case w.Expect < int64(store.Any):
			return fmt.Errorf("write of %s has the invalid expected revision %d", w.Key, w.Expect)
		case w.TtlSeconds < 0 || w.TtlSeconds > maxTTL:
			return fmt.Errorf("write of %s has the invalid time to live of %d s", w.Key, w.TtlSeconds)
		}
		for _, f := range [2]*raftv1.Fence{w.Fence, w.Period} {
			if f != nil && len(f.ProtoReflect().GetUnknown()) > 0 {
				return errors.New("fence of a newer version")
			}
		}
		inner = w
	case *raftv1.Operation_Tick:
		inner = k.Tick
	case *raftv1.Operation_Cancel:
		inner = k.Cancel
	case *raftv1.Operation_Compact:
		inner = k.Compact
	case *raftv1.Operation_Raise:
		inner = k.Raise
	case *raftv1.Operation_Bounds:
		if k.Bounds != nil {
			if err := checkBounds(k.Bounds.Bounds); err != nil {
				return err
			}
		}
		inner = k.Bounds
	case *raftv1.Operation_Epoch:
		inner = k.Epoch
	default:
		return errors.New("operation of an unknown kind")
	}
	if !inner.ProtoReflect().IsValid() {
		return errors.New("operation without content")
	}
	if len(inner.ProtoReflect().GetUnknown()) > 0 || len(op.ProtoReflect().GetUnknown()) > 0 {
		return errors.New("operation of a newer version")
	}
	return nil
}

// maxTTL is the longest time to live: a hundred years, in seconds.
const maxTTL = 100 * 366 * 24 * 3600

// checkBounds checks that limits are not negative and that prefixes are not empty and do not
// overlap.
func checkBounds(bounds []*raftv1.Bound) error {
	for i, b := range bounds {
		if b.Prefix == "" || b.Entries < 0 || b.Bytes < 0 {
			return fmt.Errorf("invalid bound of prefix %q: %d entries, %d bytes", b.Prefix, b.Entries, b.Bytes)
		}
		for _, other := range bounds[:i] {
			if strings.HasPrefix(b.Prefix, other.Prefix) || strings.HasPrefix(other.Prefix, b.Prefix) {
				return fmt.Errorf("bounds of %q and %q overlap", b.Prefix, other.Prefix)
			}
		}
	}
	return nil
}

// command applies one entry of the log.
func (m *machine) command(c *raftv1.Command, index, term uint64) []outcome {
	if index <= m.applied {
		return make([]outcome, len(c.Operations)) // already applied; no caller waits for it
	}
	m.applied = index
	if term == m.term && c.ClockMs > m.clock {
		m.now += min(c.ClockMs-m.clock, maxStep)
	}
	if term != m.term || c.ClockMs > m.clock {
		m.term, m.clock = term, c.ClockMs
	}
	out := make([]outcome, len(c.Operations))
	for i, op := range c.Operations {
		out[i] = m.operation(op)
	}
	// Expire after the operations, so that an entry renewed by this command does not expire.
	for range expireAtOnce {
		r, ok := m.expiring.Min()
		if !ok || r.deadline > m.now {
			break
		}
		m.remove(r)
	}
	return out
}

func (m *machine) operation(op *raftv1.Operation) outcome {
	switch k := op.Kind.(type) {
	case *raftv1.Operation_Write:
		return m.write(k.Write)
	case *raftv1.Operation_Cancel:
		m.cancel(k.Cancel)
	case *raftv1.Operation_Compact:
		if store.Revision(k.Compact.Revision) > m.rev {
			return outcome{code: raftv1.Outcome_CODE_FUTURE}
		}
		m.history.compact(store.Revision(k.Compact.Revision))
	case *raftv1.Operation_Raise:
		if to := store.Revision(k.Raise.Revision); to > m.rev {
			m.rev = to
			m.history.reset(to)
		}
	case *raftv1.Operation_Bounds:
		m.setBounds(k.Bounds.Bounds)
	case *raftv1.Operation_Epoch:
		if !m.reached(k.Epoch.Key, store.Revision(k.Epoch.ModRevision)) {
			return outcome{code: raftv1.Outcome_CODE_FENCED}
		}
	}
	return outcome{code: raftv1.Outcome_CODE_DONE, rev: m.rev}
}

func (m *machine) get(key string) *record {
	r, _ := m.keys.Get(&record{key: key})
	return r
}

func (m *machine) write(w *raftv1.Write) outcome {
	if m.isCancelled(w.Session, w.Sequence) {
		return outcome{code: raftv1.Outcome_CODE_CANCELLED}
	}
	if !m.fenceHolds(w.Fence) || !m.fenceHolds(w.Period) {
		return outcome{code: raftv1.Outcome_CODE_FENCED}
	}
	current := m.get(w.Key)
	expect := store.Revision(w.Expect)
	switch {
	case current == nil && (w.Delete || expect > 0):
		return outcome{code: raftv1.Outcome_CODE_NOT_FOUND}
	case current == nil || expect == store.Any:
	case expect == store.MustNotExist:
		return outcome{code: raftv1.Outcome_CODE_EXISTS, current: current}
	case current.mod != expect:
		return outcome{code: raftv1.Outcome_CODE_CONFLICT, current: current}
	}
	if w.Delete {
		m.remove(current)
		return outcome{code: raftv1.Outcome_CODE_DONE, rev: m.rev}
	}
	m.rev++
	r := &record{key: w.Key, value: w.Value, mod: m.rev, created: m.rev}
	if r.value == nil {
		r.value = []byte{}
	}
	if current != nil {
		r.created = current.created
	}
	if w.TtlSeconds > 0 {
		r.deadline = m.now + w.TtlSeconds*1000 + slack
	}
	m.drop(current)
	m.add(r)
	m.history.append(event{rev: r.mod, put: r, before: current})
	m.evict(m.boundOf(r.key))
	return outcome{code: raftv1.Outcome_CODE_DONE, rev: r.mod}
}

// add inserts a record in all indexes. drop removes it from all but keys, where another record
// replaces it.
func (s *state) add(r *record) {
	s.keys.ReplaceOrInsert(r)
	s.size += r.size()
	if r.deadline > 0 {
		s.expiring.ReplaceOrInsert(r)
	}
	if b := s.boundOf(r.key); b != nil {
		b.byRev.ReplaceOrInsert(r)
		b.bytes += r.size()
	}
}

func (s *state) drop(r *record) {
	if r == nil {
		return
	}
	s.size -= r.size()
	if r.deadline > 0 {
		s.expiring.Delete(r)
	}
	if b := s.boundOf(r.key); b != nil {
		b.byRev.Delete(r)
		b.bytes -= r.size()
	}
}

// remove deletes a record, which uses a revision.
func (m *machine) remove(r *record) {
	m.rev++
	m.drop(r)
	m.keys.Delete(r)
	m.history.append(event{rev: m.rev, before: r})
}

func (s *state) boundOf(key string) *bound {
	for _, b := range s.bounds {
		if strings.HasPrefix(key, b.Prefix) {
			return b
		}
	}
	return nil
}

// evict removes the oldest records until the bound holds. The newest one stays, however large
// it is.
func (m *machine) evict(b *bound) {
	if b == nil {
		return
	}
	for b.byRev.Len() > 1 && (b.Entries > 0 && int64(b.byRev.Len()) > b.Entries || b.Bytes > 0 && b.bytes > b.Bytes) {
		r, _ := b.byRev.Min()
		m.remove(r)
	}
}

func (m *machine) setBounds(bounds []*raftv1.Bound) {
	m.index(bounds)
	for _, b := range m.bounds {
		m.evict(b)
	}
}

// index builds the indexes of bounds from the records.
func (s *state) index(bounds []*raftv1.Bound) {
	s.bounds = nil
	for _, b := range bounds {
		n := &bound{Bound: b, byRev: btree.NewG(32, byRev)}
		s.keys.AscendGreaterOrEqual(&record{key: b.Prefix}, func(r *record) bool {
			if !strings.HasPrefix(r.key, b.Prefix) {
				return false
			}
			n.byRev.ReplaceOrInsert(r)
			n.bytes += r.size()
			return true
		})
		s.bounds = append(s.bounds, n)
	}
}

// fenceHolds reports whether a writer's epoch has not ended.
func (m *machine) fenceHolds(f *raftv1.Fence) bool {
	if f == nil {
		return true
	}
	if f.Elsewhere {
		return m.reached(f.Key, store.Revision(f.ModRevision))
	}
	var rev store.Revision
	if r := m.get(f.Key); r != nil {
		rev = r.mod
	}
	return rev == store.Revision(f.ModRevision)
}

// reached records an epoch that another store granted, and reports whether it is the newest
// known one.
func (s *state) reached(key string, rev store.Revision) bool {
	newest, known := s.epochs[key]
	switch {
	case rev < newest:
		return false
	case rev == newest && known:
		return true
	case !known && len(s.epochs) >= maxEpochs:
		return false
	}
	s.epochs[key] = rev
	return true
}

func (s *state) isCancelled(session, sequence uint64) bool {
	for _, c := range s.cancelled {
		if c.Session == session {
			return sequence <= c.Sequence
		}
	}
	return false
}

// cancel records a cancellation. If there are too many, it drops the oldest, because no attempt
// of that session can still be in flight.
func (s *state) cancel(c *raftv1.Cancel) {
	n := &raftv1.Cancel{Session: c.Session, Sequence: c.Sequence}
	for i, old := range s.cancelled {
		if old.Session == c.Session {
			n.Sequence = max(n.Sequence, old.Sequence)
			s.cancelled = append(s.cancelled[:i], s.cancelled[i+1:]...)
			break
		}
	}
	if len(s.cancelled) >= maxCancelled {
		s.cancelled = s.cancelled[1:]
	}
	s.cancelled = append(s.cancelled, n)
}

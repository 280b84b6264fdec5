package raft

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	hraft "github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	raftv1 "keelson.dev/proto/keelson/raft/v1"
	"keelson.dev/services/apiserver/internal/store"
	"keelson.dev/services/apiserver/internal/store/failpoint"
)

const (
	// groupWrites and groupBytes bound the writes of one request to the leader.
	groupWrites = 1000
	groupBytes  = 512 << 10
	// settleTime bounds how long a write is repeated while its outcome is unknown or there is
	// no leader.
	settleTime = 12 * time.Second
	// localTime and forwardTime bound one attempt, on this member and on the leader, which may
	// have died.
	localTime   = 6 * time.Second
	forwardTime = 2 * time.Second
)

// fault is what a test injects into an attempt to write.
type fault = failpoint.Action

const (
	noFault     = failpoint.None
	refuse      = failpoint.Refuse
	loseRequest = failpoint.LoseRequest
	loseAnswer  = failpoint.LoseAnswer
)

var errLost = errors.New("lost")

// attempt is a write without a verdict.
type attempt struct {
	w   *store.Write
	v   *store.Verdict
	n   int // attempts so far
	op  *raftv1.Operation
	err error // why the last attempt had no effect
	// doubtful is set once the history, or the value through Settled, has shown that an attempt
	// had no effect. If further replies are lost, the write must still be reported as unknown,
	// not as failed.
	doubtful bool
}

// unknown returns the error of a write that may have been applied. It wraps no other error of
// the store, because some of those mean that nothing was written.
func (a *attempt) unknown(why error) error {
	return fmt.Errorf("write %s: %w: %s: %s", a.w.Key, store.ErrUnknownOutcome, fmt.Sprint(a.err), fmt.Sprint(why)) // text only: wrap neither error
}

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
	var group []*attempt
	bytes := 0
	for i := range writes {
		w := &writes[i]
		if err := valid(w); err != nil {
			verdicts[i].Err = err
			continue
		}
		size := len(w.Key) + len(w.Value)
		if len(group) > 0 && (len(group) >= groupWrites || bytes+size > groupBytes) {
			s.commit(ctx, group)
			group, bytes = nil, 0
		}
		group = append(group, &attempt{w: w, v: &verdicts[i]})
		bytes += size
	}
	if len(group) > 0 {
		s.commit(ctx, group)
	}
	return verdicts, nil
}

// valid checks the limits of a write.
func valid(w *store.Write) error {
	switch {
	case w.Key == "" || len(w.Key) > maxKey || !utf8.ValidString(w.Key):
		return fmt.Errorf("write %q: a key must be 1 to %d bytes of UTF-8", w.Key, maxKey)
	case len(w.Value) > maxValue:
		return fmt.Errorf("write %s: the value has %d bytes, but at most %d are allowed", w.Key, len(w.Value), maxValue)
	case w.TTLSeconds > maxTTL || w.TTLSeconds < 0:
		return fmt.Errorf("write %s: invalid time to live of %d s", w.Key, w.TTLSeconds)
	case w.Expect < store.Any:
		return fmt.Errorf("write %s: invalid expected revision %d", w.Key, w.Expect)
	}
	for _, f := range [2]*store.Fence{w.Fence, w.Period} {
		if f != nil && (f.Key == "" || !utf8.ValidString(f.Key)) {
			return fmt.Errorf("write %s: invalid fence key %q", w.Key, f.Key)
		}
	}
	return nil
}

// commit applies a group of writes in one entry of the log, and repeats those that were not
// applied. An attempt with an unknown outcome is cancelled first: after that, either it has
// been applied, which the history shows, or it never will be.
func (s *Store) commit(ctx context.Context, group []*attempt) {
	deadline := time.Now().Add(s.settleTime)
	pause := 5 * time.Millisecond
	for {
		if err := ctx.Err(); err != nil {
			for _, a := range group {
				a.v.Err = err
			}
			return
		}
		before := s.machine.revision()
		again, unknown, last := s.try(ctx, group)
		if len(unknown) > 0 {
			again = append(again, s.settle(unknown, before, last, deadline)...)
		}
		if len(again) == 0 {
			return
		}
		if s.closed.Load() || time.Now().Add(pause).After(deadline) {
			for _, a := range again {
				switch {
				case a.doubtful:
					a.v.Err = a.unknown(errNoLeader)
				case s.closed.Load():
					a.v.Err = store.ErrClosed
				default:
					a.v.Err = fmt.Errorf("write %s: %w", a.w.Key, errors.Join(errNoLeader, a.err))
				}
			}
			return
		}
		_ = sleep(ctx, pause)
		pause = min(2*pause, 200*time.Millisecond)
		group = inOrder(group, again)
	}
}

// inOrder returns the attempts that are left, in the order of the group.
func inOrder(group, left []*attempt) (out []*attempt) {
	is := make(map[*attempt]bool, len(left))
	for _, a := range left {
		is[a] = true
	}
	for _, a := range group {
		if is[a] {
			out = append(out, a)
		}
	}
	return out
}

// try attempts the writes once. It returns those that had no effect, those whose outcome is
// unknown, and the sequence of the last attempt.
func (s *Store) try(ctx context.Context, group []*attempt) (again, unknown []*attempt, last uint64) {
	sent := make([]*attempt, 0, len(group))
	ops := make([]*raftv1.Operation, 0, len(group))
	dropped := map[*attempt]bool{}
	for _, a := range group {
		last = s.sequence.Add(1)
		a.op = s.operation(a.w, last)
		f := failpoint.At(failpoint.Raft)
		if s.fault != nil {
			f = s.fault(a.w, a.n)
			a.n++
		}
		switch f {
		case refuse:
			a.v.Err = fmt.Errorf("write %s: %w", a.w.Key, store.ErrTooMany)
			continue
		case loseRequest:
			a.err = errLost
			unknown = append(unknown, a)
			continue
		case loseAnswer:
			dropped[a] = true
		}
		sent = append(sent, a)
		ops = append(ops, a.op)
	}
	if len(ops) == 0 {
		return nil, unknown, last
	}
	res, err := s.propose(context.WithoutCancel(ctx), ops)
	for i, a := range sent {
		a.err = err
		switch {
		case dropped[a]:
			a.err = errLost
			unknown = append(unknown, a)
		case err == nil && res.outcomes[i].code == raftv1.Outcome_CODE_CANCELLED:
			again = append(again, a)
		case err == nil:
			*a.v = verdict(a.w.Key, res.outcomes[i])
		case errors.Is(err, store.ErrTooMany):
			a.v.Err = fmt.Errorf("write %s: %w", a.w.Key, store.ErrTooMany)
		case refused(err):
			again = append(again, a)
		default:
			unknown = append(unknown, a)
		}
	}
	return again, unknown, last
}

func (s *Store) operation(w *store.Write, sequence uint64) *raftv1.Operation {
	out := &raftv1.Write{Key: w.Key, Value: w.Value, Delete: w.Value == nil, Expect: int64(w.Expect), Session: s.session, Sequence: sequence}
	if w.Value != nil {
		out.TtlSeconds = w.TTLSeconds
	}
	if f := w.Fence; f != nil {
		out.Fence = &raftv1.Fence{
			Key: f.Key, ModRevision: int64(f.ModRevision),
			Elsewhere: s.cfg.FencesElsewhere != "" && strings.HasPrefix(f.Key, s.cfg.FencesElsewhere),
		}
	}
	if f := w.Period; f != nil {
		out.Period = &raftv1.Fence{Key: f.Key, ModRevision: int64(f.ModRevision)}
	}
	return &raftv1.Operation{Kind: &raftv1.Operation_Write{Write: out}}
}

func verdict(key string, o outcome) (v store.Verdict) {
	switch o.code {
	case raftv1.Outcome_CODE_DONE:
		v.Revision = o.rev
	case raftv1.Outcome_CODE_NOT_FOUND:
		v.Err = store.ErrNotFound
	case raftv1.Outcome_CODE_EXISTS:
		v.Err = store.ErrExists
	case raftv1.Outcome_CODE_CONFLICT:
		v.Err = store.ErrConflict
	case raftv1.Outcome_CODE_FENCED:
		v.Err = store.ErrFenced
	case raftv1.Outcome_CODE_FUTURE:
		v.Err = store.ErrFutureRevision
	case raftv1.Outcome_CODE_TOO_MANY:
		v.Err = store.ErrTooMany
	default:
		v.Err = fmt.Errorf("write %s: outcome %s: %w", key, o.code, store.ErrUnknownOutcome)
	}
	if o.current != nil {
		e := o.current.entry()
		v.Current = &e
	}
	return v
}

// propose sends operations to the leader, which may be this member. After an error for which
// refused returns false, the outcome is unknown.
func (s *Store) propose(ctx context.Context, ops []*raftv1.Operation) (result, error) {
	via, limit := s.proposals, s.localTime
	if s.raft.State() != hraft.Leader {
		if _, leader := s.raft.LeaderWithID(); leader == "" || leader == s.id {
			return result{}, errNotLeader
		}
		via, limit = s.forwards, s.forwardTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	return via.do(ctx, ops)
}

// administer applies one operation that may be repeated.
func (s *Store) administer(ctx context.Context, op *raftv1.Operation, deadline time.Time) (result, error) {
	pause := 5 * time.Millisecond
	for {
		if err := ctx.Err(); err != nil {
			return result{}, err
		}
		if s.closed.Load() {
			return result{}, store.ErrClosed
		}
		res, err := s.propose(ctx, []*raftv1.Operation{proto.CloneOf(op)})
		if err == nil {
			return res, nil
		}
		if time.Now().Add(pause).After(deadline) {
			return result{}, err
		}
		_ = sleep(ctx, pause)
		pause = min(2*pause, 200*time.Millisecond)
	}
}

func (m *machine) revision() store.Revision {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.rev
}

// Compact implements store.Store.
func (s *Store) Compact(ctx context.Context, rev store.Revision) error {
	res, err := s.administer(ctx, &raftv1.Operation{Kind: &raftv1.Operation_Compact{Compact: &raftv1.Compact{Revision: int64(rev)}}}, time.Now().Add(s.settleTime))
	if err != nil {
		return fmt.Errorf("compact at %d: %w", rev, err)
	}
	if res.outcomes[0].code == raftv1.Outcome_CODE_FUTURE {
		return store.ErrFutureRevision
	}
	return s.machine.wait(ctx, res.index, time.Now().Add(s.settleTime))
}

// Raise raises the revision to at least rev and drops the history. A store that takes over from
// another one continues its revisions this way.
func (s *Store) Raise(ctx context.Context, rev store.Revision) error {
	_, err := s.administer(ctx, &raftv1.Operation{Kind: &raftv1.Operation_Raise{Raise: &raftv1.Raise{Revision: int64(rev)}}}, time.Now().Add(s.settleTime))
	return err
}

// Granted reports to the store that another store has granted an epoch: key has this revision
// there. From then on, writes with an older fence fail.
func (s *Store) Granted(ctx context.Context, key string, rev store.Revision) error {
	res, err := s.administer(ctx, &raftv1.Operation{Kind: &raftv1.Operation_Epoch{Epoch: &raftv1.Epoch{Key: key, ModRevision: int64(rev)}}}, time.Now().Add(s.settleTime))
	if err != nil {
		return fmt.Errorf("epoch %s: %w", key, err)
	}
	if res.outcomes[0].code == raftv1.Outcome_CODE_FENCED {
		return store.ErrFenced
	}
	return nil
}

package etcd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"

	"keelson.dev/services/apiserver/internal/store"
)

// Member is a member of etcd.
type Member struct {
	ID uint64
	// Name of the member, and its seat: the name with its disk.
	Name, Seat string
	// Address is where the others find it; empty if it is not known.
	Address string
	// Learner has no vote. Started says that it has run with this seat.
	Learner, Started bool
	Leader, Self     bool
}

// The errors of changes of members.
var (
	// ErrMember means that the change cannot be made.
	ErrMember = errors.New("etcd's members cannot be changed so")
	errAlone  = fmt.Errorf("%w: this one was started without peers", ErrMember)
)

// changeWait is the time between two tries of a change.
const changeWait = 200 * time.Millisecond

// follow keeps the ways to all members open until ctx ends.
func (p *peers) follow(ctx context.Context, s *etcdserver.EtcdServer) {
	tick := time.NewTicker(changeWait)
	defer tick.Stop()
	for {
		seats := map[string]bool{}
		for _, m := range s.Cluster().Members() {
			seat := seatOfURLs(m.PeerURLs)
			seats[seat] = true
			if seat == p.seat() || seat == "" {
				continue
			}
			if err := p.openOutlet(seat); err != nil {
				p.log.Warn("cannot open the way to a peer of etcd", "peer", seat, "error", err)
			}
		}
		if len(seats) > 0 {
			if err := p.onlySeats(seats); err != nil {
				p.log.Warn("cannot keep the addresses of etcd's peers", "error", err)
			}
		}
		select {
		case <-tick.C:
		case <-s.StopNotify():
			return
		case <-ctx.Done():
			return
		}
	}
}

// askTime is how long a member with data asks the others, before it starts, whether
// it was given up for lost.
const askTime = time.Second

// stillMember asks whether this member was given up for lost; who does not answer
// soon is not waited for.
func (p *peers) stillMember(ctx context.Context, hasLog bool) error {
	if !hasLog {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.askTime)
	defer cancel()
	addresses := p.everywhere()
	asked := make(chan struct{}, len(addresses))
	for _, address := range addresses {
		if !p.run(func() {
			_ = p.exchange(address) // most are not there yet
			asked <- struct{}{}
		}) {
			return p.ctx.Err()
		}
	}
	for range addresses {
		select {
		case <-asked:
		case <-p.outlived:
			return errOutlived
		case <-ctx.Done():
			return nil
		}
	}
	select {
	case <-p.outlived:
		return errOutlived
	default:
		return nil
	}
}

// endOutlived ends etcd when it is heard that this member was given up for lost.
func (p *peers) endOutlived(ctx context.Context, s *etcdserver.EtcdServer) {
	select {
	case <-p.outlived:
		p.log.Error("etcd ends", "error", errOutlived)
		s.HardStop()
	case <-s.StopNotify():
	case <-ctx.Done():
	}
}

// Members are the members of etcd, linearizably.
func (e *Embedded) Members(ctx context.Context) ([]Member, error) {
	s := e.etcd.Server
	var found []*membership.Member
	err := e.repeat(ctx, attemptTime, func(ctx context.Context) (err error) {
		found, err = s.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
		return err
	})
	if err != nil {
		return nil, e.failure(ctx, "list etcd's members", err)
	}
	var out []Member
	for _, f := range found {
		m := Member{
			ID: uint64(f.ID), Seat: seatOfURLs(f.PeerURLs), Learner: f.IsLearner, Started: f.Name != "",
			Leader: f.ID == s.Leader(), Self: f.ID == s.MemberID(),
		}
		m.Name = nameOf(m.Seat)
		if e.peers != nil {
			if a := e.peers.addresses(m.Seat); len(a) > 0 {
				m.Address = a[0]
			}
		}
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.Seat, b.Seat) })
	return out, nil
}

// change repeats step until it says that all is done, or fails for good. Each step
// looks at the members anew, so that a change whose answer was lost, or that
// somebody else made, counts.
func (e *Embedded) change(ctx context.Context, what string, step func(ctx context.Context, all []Member) (done bool, err error)) error {
	if e.peers == nil {
		return errAlone
	}
	var last error
	for {
		all, err := e.Members(ctx)
		if err == nil {
			var done bool
			try, cancel := context.WithTimeout(ctx, readTime)
			if done, err = step(try, all); done {
				cancel()
				return nil
			}
			cancel()
		}
		if errors.Is(err, ErrMember) || e.closed.Load() || errors.Is(err, etcderrors.ErrStopped) {
			return fmt.Errorf("%s: %w", what, err)
		}
		if err != nil && ctx.Err() == nil {
			last = err
		}
		select {
		case <-time.After(changeWait):
		case <-ctx.Done():
			if last != nil {
				return fmt.Errorf("%s: %w (last: %w)", what, ctx.Err(), last)
			}
			return fmt.Errorf("%s: %w", what, ctx.Err())
		}
	}
}

func byName(all []Member, name string) *Member {
	for i := range all {
		if all[i].Name == name {
			return &all[i]
		}
	}
	return nil
}

// Add lets the member of that name in, first as a learner, then, when it has
// caught up, with a vote. It waits until the member is there, and until the others
// are well enough; ctx bounds it. It may be repeated: what is done stays.
func (e *Embedded) Add(ctx context.Context, name string) error {
	if err := e.AddLearner(ctx, name); err != nil {
		return err
	}
	return e.Promote(ctx, name)
}

// AddLearner lets the member of that name in, without a vote.
func (e *Embedded) AddLearner(ctx context.Context, name string) error {
	return e.change(ctx, "add member "+name, func(ctx context.Context, all []Member) (bool, error) {
		there, known := e.peers.newest(name)
		if m := byName(all, name); m != nil {
			if known && there.Seat != m.Seat && there.Fresh {
				return false, fmt.Errorf("%w: %s is a member with another disk; replace it", ErrMember, name)
			}
			return true, nil
		}
		if !known || !there.Fresh {
			return false, errors.New("the new member is not there yet")
		}
		now := time.Now()
		m := membership.NewMemberAsLearner("", types.URLs{url.URL{Scheme: "unix", Host: there.Seat}}, "", &now)
		_, err := e.etcd.Server.AddMember(ctx, *m)
		return err == nil, err
	})
}

// Promote gives a learner its vote, when it has started and has caught up.
func (e *Embedded) Promote(ctx context.Context, name string) error {
	return e.change(ctx, "promote member "+name, func(ctx context.Context, all []Member) (bool, error) {
		m := byName(all, name)
		switch {
		case m == nil:
			return false, fmt.Errorf("%w: there is no member %s", ErrMember, name)
		case !m.Learner:
			return true, nil
		}
		// The leader refuses until the learner has acknowledged nearly all of the log: so
		// it has started.
		_, err := e.etcd.Server.PromoteMember(ctx, m.ID)
		return err == nil, err
	})
}

// Remove takes a member's place away; its process ends etcd when it hears of it.
// Removing who is no member succeeds.
func (e *Embedded) Remove(ctx context.Context, name string) error {
	return e.remove(ctx, name, func(Member) bool { return true })
}

func (e *Embedded) remove(ctx context.Context, name string, which func(Member) bool) error {
	return e.change(ctx, "remove member "+name, func(ctx context.Context, all []Member) (bool, error) {
		voters := 0
		var target *Member
		for i, m := range all {
			if !m.Learner {
				voters++
			}
			if m.Name == name && which(m) {
				target = &all[i]
			}
		}
		switch {
		case target == nil:
			return true, nil
		case !target.Learner && voters == 1:
			return false, fmt.Errorf("%w: %s is the only one with a vote", ErrMember, name)
		case target.Leader && !target.Self && !e.etcd.Server.IsLearner():
			// Lead first: what a leader that goes has committed, the others may not hear of.
			if err := e.etcd.Server.MoveLeader(ctx, target.ID, uint64(e.etcd.Server.MemberID())); err != nil {
				return false, err
			}
		case target.Leader && target.Self:
			// Hand over first: the others would have to miss it before they elect.
			if err := e.etcd.Server.TryTransferLeadershipOnShutdown(); err != nil {
				return false, err
			}
		}
		_, err := e.etcd.Server.RemoveMember(ctx, target.ID)
		if errors.Is(err, membership.ErrIDRemoved) || errors.Is(err, membership.ErrIDNotFound) {
			err = nil
		}
		return err == nil, err
	})
}

// Replace lets a member in that has lost its disk: its place with the old disk is
// taken away, and it gets a new one. It waits until the member is there with its
// new disk, so that the cluster has no more members missing than before. A member
// that is there with the disk that it had stays as it is.
func (e *Embedded) Replace(ctx context.Context, name string) error {
	err := e.change(ctx, "replace member "+name, func(_ context.Context, all []Member) (bool, error) {
		there, known := e.peers.newest(name)
		if m := byName(all, name); m != nil && (!known || m.Seat == there.Seat) {
			if e.peers.answers(m.Seat) {
				return true, nil // it is there with its disk, or was replaced before
			}
			return false, errors.New("it is not there, neither with its disk nor with a new one")
		}
		if !known || !there.Fresh {
			return false, errors.New("it is not there with a new disk yet")
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	there, _ := e.peers.newest(name)
	if err := e.remove(ctx, name, func(m Member) bool { return m.Seat != there.Seat }); err != nil {
		return err
	}
	return e.Add(ctx, name)
}

// Voting is nil while this member has a vote, as far as it knows: the others can
// do without one of theirs.
func (e *Embedded) Voting(context.Context) error {
	if e.etcd.Server.IsLearner() {
		return errors.New("this member of etcd has no vote yet")
	}
	return nil
}

const (
	// lookEvery is how often the leader looks for members with empty disks.
	lookEvery = time.Second
	// takeInTime bounds one attempt to let such a member in.
	takeInTime = time.Minute
)

// TakeIn lets members in, until ctx ends, that are there with an empty disk under
// the name of a member, or under one that is admitted: each takes the place of the
// old disk of its name, if there is one, once that one does not answer. The leader
// does it.
func (e *Embedded) TakeIn(ctx context.Context, admitted func(ctx context.Context, name string) bool) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		for _, name := range e.peers.fresh() {
			if s := e.etcd.Server; s.Leader() != s.MemberID() {
				break
			}
			if slices.Contains(e.Names(), name) || admitted(ctx, name) {
				e.takeIn(ctx, name)
			}
		}
		e.finish(ctx)
		select {
		case <-tick.C:
		case <-e.Stopped():
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// finish promotes learners that have caught up: whoever let them in may have died
// before.
func (e *Embedded) finish(ctx context.Context) {
	s := e.etcd.Server
	if s.Leader() != s.MemberID() {
		return
	}
	for _, m := range s.Cluster().Members() {
		if !m.IsLearner {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, readTime)
		if _, err := s.PromoteMember(ctx, uint64(m.ID)); err != nil {
			e.log.Debug("a learner of etcd is not promoted yet", "member", seatOfURLs(m.PeerURLs), "error", err)
		}
		cancel()
	}
}

// Names are the members' names, sorted, as far as this one knows.
func (e *Embedded) Names() (out []string) {
	for _, m := range e.etcd.Server.Cluster().Members() {
		if name := nameOf(seatOfURLs(m.PeerURLs)); name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Gone tells whether no member has the name, linearizably.
func (e *Embedded) Gone(ctx context.Context, name string) (bool, error) {
	all, err := e.Members(ctx)
	return err == nil && byName(all, name) == nil, err
}

// Known is where a member or who wants to be one can be reached, as it said itself
// last.
type Known struct{ Name, Address, Service string }

// Known are those who have told of themselves, and this one; of a name, the newest.
// It needs no quorum.
func (e *Embedded) Known() (out []Known) {
	if e.peers == nil {
		return nil
	}
	names := map[string]bool{}
	for _, c := range e.peers.all() {
		names[nameOf(c.Seat)] = true
	}
	for name := range names {
		if c, ok := e.peers.newest(name); ok {
			out = append(out, Known{Name: name, Address: c.Address, Service: c.Service})
		}
	}
	slices.SortFunc(out, func(a, b Known) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Leads tells whether this member leads.
func (e *Embedded) Leads() bool { s := e.etcd.Server; return s.Leader() == s.MemberID() }

// HandOver makes another member the leader, if this one leads and there is another. It
// is bounded by etcd's own time for requests.
func (e *Embedded) HandOver() error { return e.etcd.Server.TryTransferLeadershipOnShutdown() }

// Applied is how far this member has applied the log.
func (e *Embedded) Applied() uint64 { return e.etcd.Server.AppliedIndex() }

// Health is nil while this member knows a leader. It says nothing about others.
func (e *Embedded) Health() error {
	switch {
	case e.closed.Load():
		return store.ErrClosed
	case e.etcd.Server.Leader() == 0:
		return errors.New("this member of etcd knows no leader")
	}
	return nil
}

// takeIn looks at one name.
func (e *Embedded) takeIn(ctx context.Context, name string) {
	there, known := e.peers.newest(name)
	if !known || !there.Fresh || there.Seat == e.peers.seat() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, takeInTime)
	defer cancel()
	all, err := e.Members(ctx)
	if err != nil {
		return
	}
	m := byName(all, name)
	switch {
	case m != nil && m.Seat == there.Seat && !m.Learner:
		return
	case !e.peers.answers(there.Seat):
		return // it has gone again
	case m != nil && m.Seat != there.Seat && e.peers.answers(m.Seat):
		return // two claim the name; the one with the data has it
	case m != nil && m.Seat != there.Seat:
		e.log.Warn("a member of etcd came back with an empty disk and is let in anew", "member", name)
		err = e.Replace(ctx, name)
	default:
		err = e.Add(ctx, name)
	}
	if err != nil && ctx.Err() == nil {
		e.log.Warn("a member of etcd could not be let in", "member", name, "error", err)
	}
}

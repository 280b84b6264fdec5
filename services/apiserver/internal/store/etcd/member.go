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
	// Name is the name of the member, and Seat the name with its disk.
	Name, Seat string
	// Address is where the other members reach it, or empty if that is unknown.
	Address string
	// Learner reports whether the member has no vote, and Started whether it has run with this
	// seat.
	Learner, Started bool
	Leader, Self     bool
}

// Errors of changes of the membership.
var (
	// ErrMember means that the change is impossible.
	ErrMember = errors.New("etcd's members cannot be changed this way")
	errAlone  = fmt.Errorf("%w: this member was started without peers", ErrMember)
)

// changeWait is the pause between attempts of a change.
const changeWait = 200 * time.Millisecond

// follow keeps the connections to all members open until ctx ends.
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
				p.log.WarnContext(ctx, "cannot open the socket to a peer of etcd", "peer", seat, "error", err)
			}
		}
		if len(seats) > 0 {
			if err := p.onlySeats(seats); err != nil {
				p.log.WarnContext(ctx, "cannot save the addresses of etcd's peers", "error", err)
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

// askTime bounds how long a member with data asks the others, before it starts, whether it was
// given up as lost.
const askTime = time.Second

// stillMember asks the others whether this member was given up as lost, and returns errOutlived
// if so. Members that do not answer within askTime are ignored.
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
			_ = p.exchange(address) // most have not started yet
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

// endOutlived stops etcd when this member learns that it was given up as lost.
func (p *peers) endOutlived(ctx context.Context, s *etcdserver.EtcdServer) {
	select {
	case <-p.outlived:
		p.log.ErrorContext(ctx, "stopping etcd", "error", errOutlived)
		s.HardStop()
	case <-s.StopNotify():
	case <-ctx.Done():
	}
}

// Members returns the members of etcd. It is linearizable.
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

// change repeats step until it reports that the change is done, or fails for good. Each step
// reads the members again, so that a change counts whose reply was lost, or that another member
// made.
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

// byName returns the member with a name, or nil.
func byName(all []Member, name string) *Member {
	for i := range all {
		if all[i].Name == name {
			return &all[i]
		}
	}
	return nil
}

// Add adds the member with this name, first as a learner, and gives it a vote when it has
// caught up. It waits until the member is reachable and until the others are healthy enough, or
// ctx ends. It may be repeated: completed steps are kept.
func (e *Embedded) Add(ctx context.Context, name string) error {
	if err := e.AddLearner(ctx, name); err != nil {
		return err
	}
	return e.Promote(ctx, name)
}

// AddLearner adds the member with this name, without a vote.
func (e *Embedded) AddLearner(ctx context.Context, name string) error {
	return e.change(ctx, "add member "+name, func(ctx context.Context, all []Member) (bool, error) {
		there, known := e.peers.newest(name)
		if m := byName(all, name); m != nil {
			if known && there.Seat != m.Seat && there.Fresh {
				return false, fmt.Errorf("%w: %s is already a member with another disk; replace it", ErrMember, name)
			}
			return true, nil
		}
		if !known || !there.Fresh {
			return false, errors.New("the new member is not reachable yet")
		}
		now := time.Now()
		m := membership.NewMemberAsLearner("", types.URLs{url.URL{Scheme: "unix", Host: there.Seat}}, "", &now)
		_, err := e.etcd.Server.AddMember(ctx, *m)
		return err == nil, err
	})
}

// Promote gives a learner its vote, once it has started and caught up.
func (e *Embedded) Promote(ctx context.Context, name string) error {
	return e.change(ctx, "promote member "+name, func(ctx context.Context, all []Member) (bool, error) {
		m := byName(all, name)
		switch {
		case m == nil:
			return false, fmt.Errorf("%w: %s is not a member", ErrMember, name)
		case !m.Learner:
			return true, nil
		}
		// The leader refuses until the learner has acknowledged nearly all of the log, and
		// therefore has started.
		_, err := e.etcd.Server.PromoteMember(ctx, m.ID)
		return err == nil, err
	})
}

// Remove removes a member. Its process stops etcd when it learns of it. Removing a name that is
// not a member's succeeds.
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
			return false, fmt.Errorf("%w: %s is the only voter", ErrMember, name)
		case target.Leader && !target.Self && !e.etcd.Server.IsLearner():
			// Take over the leadership first: the others may not learn what a leader commits
			// just before it stops.
			if err := e.etcd.Server.MoveLeader(ctx, target.ID, uint64(e.etcd.Server.MemberID())); err != nil {
				return false, err
			}
		case target.Leader && target.Self:
			// Hand over first: otherwise the others would have to notice its absence before
			// they elect a leader.
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

// Replace replaces a member that has lost its disk: it removes the member with the old disk and
// adds it with the new one. It waits until the member is reachable with its new disk, so that
// no more members are missing than before. A member that is reachable with its known disk is
// not changed.
func (e *Embedded) Replace(ctx context.Context, name string) error {
	err := e.change(ctx, "replace member "+name, func(_ context.Context, all []Member) (bool, error) {
		there, known := e.peers.newest(name)
		if m := byName(all, name); m != nil && (!known || m.Seat == there.Seat) {
			if e.peers.answers(m.Seat) {
				return true, nil // it is reachable with its disk, or has been replaced already
			}
			return false, errors.New("it is not reachable, neither with its disk nor with a new one")
		}
		if !known || !there.Fresh {
			return false, errors.New("it is not reachable with a new disk yet")
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

// Voting returns nil while this member has a vote, as far as it knows. While it fails, the
// others must not lose one of their votes.
func (e *Embedded) Voting(context.Context) error {
	if e.etcd.Server.IsLearner() {
		return errors.New("this member of etcd has no vote yet")
	}
	return nil
}

const (
	// lookEvery is the interval at which the leader looks for members with empty disks.
	lookEvery = time.Second
	// takeInTime bounds one attempt to add such a member.
	takeInTime = time.Minute
)

// TakeIn runs until ctx ends. While this member leads, it adds members that announce themselves
// with an empty disk under the name of a member, or under a name for which admitted returns
// true. Each replaces the old disk of its name, if there is one, once that does not answer.
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

// finish promotes learners that have caught up, because the member that added them may have
// died before it promoted them.
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
			e.log.DebugContext(ctx, "a learner of etcd cannot be promoted yet", "member", seatOfURLs(m.PeerURLs), "error", err)
		}
		cancel()
	}
}

// Names returns the members' names, sorted, as far as this member knows.
func (e *Embedded) Names() (out []string) {
	for _, m := range e.etcd.Server.Cluster().Members() {
		if name := nameOf(seatOfURLs(m.PeerURLs)); name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Gone reports whether no member has the name. It is linearizable.
func (e *Embedded) Gone(ctx context.Context, name string) (bool, error) {
	all, err := e.Members(ctx)
	return err == nil && byName(all, name) == nil, err
}

// Known is where a member, or a process that wants to become one, can be reached, according to
// its last announcement.
type Known struct{ Name, Address, Service string }

// Known returns the processes that have announced themselves, including this one, with the
// newest card of each name. It needs no quorum.
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

// Leads reports whether this member leads.
func (e *Embedded) Leads() bool { s := e.etcd.Server; return s.Leader() == s.MemberID() }

// HandOver transfers leadership to another member, if this one leads and there is another. It
// takes at most etcd's timeout for requests.
func (e *Embedded) HandOver() error { return e.etcd.Server.TryTransferLeadershipOnShutdown() }

// Applied returns the index of the last log entry that this member has applied.
func (e *Embedded) Applied() uint64 { return e.etcd.Server.AppliedIndex() }

// Health returns nil while this member has a leader. It does not check other members.
func (e *Embedded) Health() error {
	switch {
	case e.closed.Load():
		return store.ErrClosed
	case e.etcd.Server.Leader() == 0:
		return errors.New("this member of etcd has no leader")
	}
	return nil
}

// takeIn adds or replaces the member with one name, if it is waiting for that.
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
		return // it is not reachable any more
	case m != nil && m.Seat != there.Seat && e.peers.answers(m.Seat):
		return // two processes claim the name; the one with the data keeps it
	case m != nil && m.Seat != there.Seat:
		e.log.WarnContext(ctx, "replacing a member of etcd that came back with an empty disk", "member", name)
		err = e.Replace(ctx, name)
	default:
		err = e.Add(ctx, name)
	}
	if err != nil && ctx.Err() == nil {
		e.log.WarnContext(ctx, "cannot add a member of etcd", "member", name, "error", err)
	}
}

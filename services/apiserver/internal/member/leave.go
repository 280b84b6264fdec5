package member

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	memberv1 "keelson.dev/proto/keelson/member/v1"
	"keelson.dev/services/apiserver/internal/store"
)

// leave takes a member's place away, and waits until both stores have let it go.
// With retire, the member ends first.
func (s *Service) leave(ctx context.Context, name string, retire bool) error {
	if name == s.cfg.Name {
		return s.leaveElsewhere(ctx)
	}
	release, err := s.hold(ctx)
	if err != nil {
		return err
	}
	defer release()
	all, err := s.list(ctx)
	if err != nil {
		return err
	}
	if err := refuse(all, name); err != nil {
		return err
	}
	if err := s.write(ctx, store.Write{Key: admittedPrefix + name, Expect: store.Any}); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if m := find(all, name); m != nil && m.Healthy && retire {
		defer s.awaitRetirement(ctx, name)()
	}
	if err := s.cfg.Etcd.Remove(ctx, name); err != nil {
		return err
	}
	slog.InfoContext(ctx, "a member has no place in etcd any more", "member", name)
	for {
		all, err := s.list(ctx)
		if err == nil && find(all, name) == nil {
			return nil
		}
		if waitErr := wait(ctx); waitErr != nil {
			return fmt.Errorf("%s has no place in etcd any more; the raft store has not let it go yet: %w", name, errors.Join(waitErr, err))
		}
	}
}

// leaveElsewhere has another member take this one's place away, who lives to tell.
func (s *Service) leaveElsewhere(ctx context.Context) error {
	all, err := s.list(ctx)
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.Name == s.cfg.Name || !m.Healthy || m.Etcd != memberv1.Role_ROLE_VOTER {
			continue
		}
		conn, err := s.conn(m.Name)
		if err != nil {
			return err
		}
		_, err = memberv1.NewMemberServiceClient(conn).Leave(ctx, &memberv1.LeaveRequest{Name: s.cfg.Name, PassedOn: true})
		return err
	}
	return fmt.Errorf("%w: no other member with a vote answers", errRefused)
}

// retireTime is how long a leaving member may take to finish what it is asked.
const retireTime = 20 * time.Second

// awaitRetirement has a leaving member hand over what it leads and finish what it is
// asked, so that no request is left with one that cannot do anything any more. It keeps
// its votes: of two members, one alone cannot take the other's place away. release lets
// it end; one that kept its place is a member again when it is started.
func (s *Service) awaitRetirement(ctx context.Context, name string) (release func()) {
	// Of its own: once its place is gone, nobody knows any more where it is.
	conn, err := s.cfg.Dial(name)
	if err != nil {
		slog.WarnContext(ctx, "the leaving member cannot be reached", "member", name, "error", err)
		return func() {}
	}
	peer := memberv1.NewPeerServiceClient(conn)
	retire, cancel := context.WithTimeout(ctx, retireTime)
	defer cancel()
	if _, err := peer.Retire(retire, &memberv1.RetireRequest{Stay: true}); err != nil {
		slog.WarnContext(ctx, "the leaving member may still serve clients", "member", name, "error", err)
	}
	return func() {
		defer closeConn(conn)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTime)
		defer cancel()
		if _, err := peer.Retire(ctx, &memberv1.RetireRequest{}); err != nil {
			slog.DebugContext(ctx, "the leaving member has ended before it was told to", "member", name, "error", err)
		}
	}
}

// releaseTime bounds the call that lets a member end.
const releaseTime = 2 * time.Second

// Depart is a leaving member's last step, once it serves no clients: it keeps its votes,
// and hands over what it leads again and again, until its place is gone in both stores
// or ctx ends. leads says whether it leads something, and handOver hands that over.
func (s *Service) Depart(ctx context.Context, leads func() bool, handOver func(context.Context)) {
	s.closeQuiet()
	select {
	case <-s.retired:
	default:
		return // it comes back
	}
	for {
		if leads() {
			handOver(ctx)
		}
		select {
		case <-s.released:
			if !leads() {
				return
			}
		default:
		}
		if wait(ctx) != nil {
			slog.WarnContext(ctx, "this apiserver ends before it has heard that its place is gone")
			return
		}
	}
}

// hold lets one change be made at a time.
func (s *Service) hold(ctx context.Context) (release func(), err error) {
	mine := rand.Text()
	w := store.Write{
		Key: changeKey, Value: []byte(mine), TTLSeconds: changeSeconds,
		Settled: func(found []byte) bool { return string(found) == mine },
	}
	for {
		v, err := s.cfg.Store.Commit(ctx, []store.Write{w})
		switch {
		case err != nil:
			return nil, err
		case v[0].Err == nil:
			return func() {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
				defer cancel()
				if err := s.write(ctx, store.Write{Key: changeKey, Expect: v[0].Revision}); err != nil {
					slog.WarnContext(ctx, "the next change of members has to wait for a minute", "error", err)
				}
			}, nil
		case !errors.Is(v[0].Err, store.ErrExists):
			return nil, v[0].Err
		}
		if err := wait(ctx); err != nil {
			return nil, fmt.Errorf("another change of the members is under way: %w", err)
		}
	}
}

// settled waits until a member has its votes.
func (s *Service) settled(ctx context.Context, name string) error {
	for {
		all, err := s.list(ctx)
		why := "it is not there"
		if m := find(all, name); m != nil {
			if m.Etcd == memberv1.Role_ROLE_VOTER && m.Raft == memberv1.Role_ROLE_VOTER && m.Healthy {
				return nil
			}
			why = fmt.Sprintf("etcd %s, raft %s %s", m.Etcd, m.Raft, m.Problem)
		}
		if waitErr := wait(ctx); waitErr != nil {
			return fmt.Errorf("%s has not got its votes (%s): %w", name, why, errors.Join(waitErr, err))
		}
	}
}

func wait(ctx context.Context) error {
	t := time.NewTimer(pollTime)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func find(all []*memberv1.Member, name string) *memberv1.Member {
	for _, m := range all {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// refuse says why those who are left could not go on without a member.
func refuse(all []*memberv1.Member, name string) error {
	for what, role := range map[string]func(*memberv1.Member) memberv1.Role{
		"etcd": (*memberv1.Member).GetEtcd, "the raft store": (*memberv1.Member).GetRaft,
	} {
		target := find(all, name)
		if target == nil || role(target) != memberv1.Role_ROLE_VOTER {
			continue // it has no vote that could be missed
		}
		voters, there := 0, 0
		var missing []string
		targetThere := 0 // its vote counts for the last time
		if target.Healthy {
			targetThere = 1
		}
		for _, m := range all {
			if m.Name == name || role(m) != memberv1.Role_ROLE_VOTER {
				continue
			}
			voters++
			if m.Healthy {
				there++
			} else {
				missing = append(missing, m.Name)
			}
		}
		switch need := voters/2 + 1; {
		case voters == 0:
			return fmt.Errorf("%w: %s is the only one with a vote in %s; add another first", errRefused, name, what)
		case there < need:
			return fmt.Errorf("%w: without %s, %d of %s's %d members would be there, and %d are needed; bring %s back first, or let it leave first",
				errRefused, name, there, what, voters, need, strings.Join(missing, ", "))
		case there+targetThere < (voters+1)/2+1:
			return fmt.Errorf("%w: %s is down, and its vote is needed: %d of %s's %d members are there; bring %s back first, or go on from one disk by recovery (keel member recover)",
				errRefused, name, there, what, voters+1, name)
		}
	}
	return nil
}

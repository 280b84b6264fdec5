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

// leave removes a member from etcd and waits until the raft store has removed it too. With
// retire, the member first hands over its leaderships and completes its requests.
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
	slog.InfoContext(ctx, "removed a member from etcd", "member", name)
	for {
		all, err := s.list(ctx)
		if err == nil && find(all, name) == nil {
			return nil
		}
		if waitErr := wait(ctx); waitErr != nil {
			return fmt.Errorf("%s was removed from etcd, but not yet from the raft store: %w", name, errors.Join(waitErr, err))
		}
	}
}

// leaveElsewhere asks another member to remove this one, so that this one can still answer the
// caller.
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

// retireTime bounds how long a leaving member may take to complete its requests.
const retireTime = 20 * time.Second

// awaitRetirement asks a leaving member to hand over its leaderships and to complete its
// requests, so that no request is left on a member that can no longer do anything. The member
// keeps its votes, because of two members, neither can remove the other without the other's
// vote. release lets its process end. If it was not removed, it is a member again when it is
// started.
func (s *Service) awaitRetirement(ctx context.Context, name string) (release func()) {
	// A connection of its own: once the member is removed, its address is no longer known.
	conn, err := s.cfg.Dial(name)
	if err != nil {
		slog.WarnContext(ctx, "cannot reach the leaving member", "member", name, "error", err)
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
			slog.DebugContext(ctx, "the leaving member ended before it was released", "member", name, "error", err)
		}
	}
}

// releaseTime bounds the call that releases a leaving member.
const releaseTime = 2 * time.Second

// Depart is the last step of a leaving member, after it has stopped serving clients. The member
// keeps its votes and hands over what it leads, as often as needed, until it has been removed
// from both stores or ctx ends. leads reports whether it leads either store, and handOver
// transfers that leadership. Depart returns at once if the member was not asked to leave.
func (s *Service) Depart(ctx context.Context, leads func() bool, handOver func(context.Context)) {
	s.closeQuiet()
	select {
	case <-s.retired:
	default:
		return // it stops only to be started again
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
			slog.WarnContext(ctx, "this apiserver stops before its removal was confirmed")
			return
		}
	}
}

// hold takes the key that serializes changes of the membership, and waits while another change
// holds it. The key expires after changeSeconds if its holder dies.
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
					slog.WarnContext(ctx, "cannot release the membership lock; the next change has to wait until it expires", "seconds", changeSeconds, "error", err)
				}
			}, nil
		case !errors.Is(v[0].Err, store.ErrExists):
			return nil, v[0].Err
		}
		if err := wait(ctx); err != nil {
			return nil, fmt.Errorf("another change of the membership is in progress: %w", err)
		}
	}
}

// settled waits until a member is healthy and votes in both stores.
func (s *Service) settled(ctx context.Context, name string) error {
	for {
		all, err := s.list(ctx)
		why := "it is not a member"
		if m := find(all, name); m != nil {
			if m.Etcd == memberv1.Role_ROLE_VOTER && m.Raft == memberv1.Role_ROLE_VOTER && m.Healthy {
				return nil
			}
			why = fmt.Sprintf("etcd %s, raft %s %s", m.Etcd, m.Raft, m.Problem)
		}
		if waitErr := wait(ctx); waitErr != nil {
			return fmt.Errorf("%s is not a healthy voter of both stores yet (%s): %w", name, why, errors.Join(waitErr, err))
		}
	}
}

// wait waits for pollTime, or returns ctx's error if ctx ends first.
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

// find returns the member called name, or nil.
func find(all []*memberv1.Member, name string) *memberv1.Member {
	for _, m := range all {
		if m.Name == name {
			return m
		}
	}
	return nil
}

// refuse returns an error if the other members could not go on without the member called name.
// The error wraps errRefused and explains what to do.
func refuse(all []*memberv1.Member, name string) error {
	for what, role := range map[string]func(*memberv1.Member) memberv1.Role{
		"etcd": (*memberv1.Member).GetEtcd, "the raft store": (*memberv1.Member).GetRaft,
	} {
		target := find(all, name)
		if target == nil || role(target) != memberv1.Role_ROLE_VOTER {
			continue // it has no vote that would be missing
		}
		voters, there := 0, 0
		var missing []string
		targetThere := 0 // 1 if the member itself can vote for its removal
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
			return fmt.Errorf("%w: %s is the only voter of %s; add another member first", errRefused, name, what)
		case there < need:
			return fmt.Errorf("%w: without %s, %d of %s's %d voters would be healthy, but %d are needed; bring %s back first, or remove it first",
				errRefused, name, there, what, voters, need, strings.Join(missing, ", "))
		case there+targetThere < (voters+1)/2+1:
			return fmt.Errorf("%w: %s is down and its vote is needed: %d of %s's %d voters are healthy; bring %s back first, or recover from one disk (keel member recover)",
				errRefused, name, there, what, voters+1, name)
		}
	}
	return nil
}

package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"keelson.dev/services/apiserver/internal/store"
)

// Space is what a member knows of the space in its backend's file.
//
// When the file has grown to the quota, or beyond by what is written between two syncs, etcd
// raises an alarm, and all members refuse writes that need space; reads and deletions go on. History and deleted
// objects keep their space until a compaction, and the file its size until it is
// defragmented. So while there is an alarm, a member
//
//  1. compacts all history but that since its last check,
//  2. defragments its file if that returns enough, one member at a time and only while it
//     does not lead, because its reads and writes stand still meanwhile: a leader hands over
//     first,
//  3. ends its own alarm once its file leaves room again. The leader also ends alarms of
//     members that are gone.
//
// Writes go on once no member has an alarm. Nothing of this requires writes to etcd: whose
// turn it is stands in the transient store, which has no quota.
type Space struct {
	// Size of the file, what of it is in use, and the quota, in bytes.
	Size, Used, Quota int64
	// Full is true while an alarm of any member makes the store refuse writes.
	Full bool
}

// String describes the space in one line. It begins with "warning: " if something should be
// done.
func (s Space) String() string {
	const mib = 1 << 20
	text := fmt.Sprintf("%d of %d MiB, %d in use", s.Size/mib, s.Quota/mib, s.Used/mib)
	switch {
	case s.Full:
		return "warning: the store is full (" + text + ") and refuses writes: delete objects that are not needed; their space is returned within a minute"
	case s.Used >= s.Quota/8*7:
		return "warning: the store is nearly full (" + text + "): delete objects that are not needed"
	}
	return text
}

// Space returns the present state of this member's file.
func (e *Embedded) Space() Space {
	b := e.etcd.Server.Backend()
	s := Space{Size: b.Size(), Used: b.SizeInUse(), Quota: e.quota}
	for _, a := range e.etcd.Server.Alarms() {
		s.Full = s.Full || a.Alarm == pb.AlarmType_NOSPACE
	}
	return s
}

// Limits of what is worth a defragmentation. It copies what is in use, some 60 MiB a second,
// and this member neither reads nor writes meanwhile.
const (
	// defragFree bytes and 1/defragPart of the file must be free without an alarm, and no
	// more than defragMost may be in use, which bounds the pause to some 15 s.
	defragFree = 256 << 20
	defragPart = 2
	defragMost = 1 << 30
	// tightFree and tightPart count instead near the quota, from 7/8 of it on.
	tightFree = 4 << 20
	tightPart = 8
)

// tight reports whether the file is so large that writes will soon be refused.
func (s Space) tight() bool { return s.Size >= s.Quota/8*7 }

// worthwhile reports whether a defragmentation returns enough.
func (s Space) worthwhile() bool {
	free := s.Size - s.Used
	if s.Full || s.tight() {
		return free >= tightFree && free >= s.Size/tightPart
	}
	return free >= defragFree && free >= s.Size/defragPart && s.Used <= defragMost
}

// Coordinate makes members defragment one at a time, by an entry in transient. Until it is
// called, a member that has peers never defragments.
func (e *Embedded) Coordinate(transient store.Store) { e.turns.Store(&turns{st: transient}) }

// turns are those of the members to defragment.
type turns struct{ st store.Store }

const (
	turnKey = "/keelson/defragment"
	// turnTime is longer than any defragmentation: 8 GiB take two to three minutes. A member
	// that dies in its turn keeps the others waiting that long.
	turnTime = 10 * time.Minute
)

// take takes the turn if no other member has it.
func (t *turns) take(ctx context.Context, name string) (release func(), ok bool, err error) {
	verdicts, err := t.st.Commit(ctx, []store.Write{{
		Key: turnKey, Value: []byte(name), Expect: store.MustNotExist, TTLSeconds: int64(turnTime / time.Second),
	}})
	switch {
	case err != nil:
		return nil, false, err
	case verdicts[0].Err == nil:
	case errors.Is(verdicts[0].Err, store.ErrExists) || errors.Is(verdicts[0].Err, store.ErrConflict):
		return nil, false, nil
	default:
		return nil, false, verdicts[0].Err
	}
	taken := verdicts[0].Revision
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		// If this fails, the entry expires.
		_, _ = t.st.Commit(ctx, []store.Write{{Key: turnKey, Expect: taken}})
	}, true, nil
}

// defragment defragments if it is this member's turn, which it may not be. It is never the
// leader's.
func (e *Embedded) defragment(ctx context.Context) error {
	if e.peers == nil {
		return e.Defragment()
	}
	t := e.turns.Load()
	if t == nil {
		return nil
	}
	release, ok, err := t.take(ctx, e.name)
	if err != nil || !ok {
		return err
	}
	defer release()
	if e.Leads() {
		if err := e.HandOver(); err != nil {
			return fmt.Errorf("hand over before a defragmentation: %w", err)
		}
		if e.Leads() { // there is no other voter
			return nil
		}
	}
	return e.Defragment()
}

// reclaim returns space while the store is full or nearly so, at an interval, until ctx
// ends.
func (e *Embedded) reclaim(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	var last store.Revision // at the check before
	var compacted store.Revision
	told := false
	for {
		select {
		case <-tick.C:
		case <-e.Stopped():
			return
		case <-ctx.Done():
			return
		}
		s := e.Space()
		if s.Full && !told {
			e.log.ErrorContext(ctx, "the store is full and refuses writes: delete objects that are not needed",
				"bytes", s.Size, "bytes_in_use", s.Used, "quota", s.Quota)
		}
		if told && !s.Full {
			e.log.InfoContext(ctx, "the store accepts writes again", "bytes", s.Size, "bytes_in_use", s.Used, "quota", s.Quota)
		}
		told = s.Full
		if !s.Full && !s.tight() {
			last = 0
			continue
		}
		if s.Full {
			rev, err := e.Revision(ctx)
			if err != nil {
				continue // the members cannot be reached: nothing can be done
			}
			if last > compacted {
				if err := e.Compact(ctx, last); err != nil && !errors.Is(err, store.ErrCompacted) {
					e.log.WarnContext(ctx, "cannot compact the full store", "error", err, "revision", int64(last))
				} else {
					compacted = last
				}
			}
			last = rev
		}
		if s = e.Space(); s.worthwhile() {
			if err := e.defragment(ctx); err != nil && ctx.Err() == nil {
				e.log.WarnContext(ctx, "cannot defragment the store", "error", err)
			}
		}
		if s = e.Space(); s.Full {
			e.endAlarms(ctx, s)
		}
	}
}

// endAlarms ends this member's alarm if its file leaves room, and, on the leader, those of
// members that are gone.
func (e *Embedded) endAlarms(ctx context.Context, s Space) {
	srv := e.etcd.Server
	for _, a := range srv.Alarms() {
		if a.Alarm != pb.AlarmType_NOSPACE {
			continue
		}
		own := a.MemberID == uint64(srv.MemberID())
		gone := e.Leads()
		for _, m := range srv.Cluster().Members() {
			gone = gone && uint64(m.ID) != a.MemberID
		}
		if own && s.tight() || !own && !gone {
			continue
		}
		if _, err := srv.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: a.MemberID, Alarm: pb.AlarmType_NOSPACE}); err != nil && ctx.Err() == nil {
			e.log.WarnContext(ctx, "cannot end the alarm of the full store", "error", err)
		}
	}
}

// spaceFields are those of Embedded that concern space.
type spaceFields struct {
	name  string
	quota int64
	turns atomic.Pointer[turns]
	// defragmenting, if set, is called when a defragmentation begins and ends. For tests.
	defragmenting func(begins bool)
}

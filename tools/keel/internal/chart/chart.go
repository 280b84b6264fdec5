// Package chart is what the Helm chart charts/keelson needs besides Keelson's services: it decides
// how an apiserver of a StatefulSet starts and whether one that ends leaves the members, and it
// keeps certificates in Secrets of the cluster that runs the chart, the outer cluster.
//
// # States of a member
//
// Each pod of the StatefulSet has a volume, whose file "origin" records how its stores began:
//
//	(none)    the volume is empty. The pod with ordinal 0 founds the control plane, unless the
//	          outer cluster's ConfigMap records that it has been founded. All others join.
//	founded   this member founded the stores, or they were restored here from a snapshot.
//	joined    this member joined the others.
//	leaving   it has asked to leave. The next start asks the others: if it is not a member any
//	          more, its volume is emptied and it joins anew; otherwise it continues.
//
// # Failures
//
//   - A pod dies at any step: the file is written before the step that it announces, and each
//     step can be repeated.
//   - The volume of ordinal 0 is lost while others are members: the record in the ConfigMap keeps
//     it from founding a second control plane; it joins.
//   - A pod is deleted, evicted or upgraded: its ordinal is below spec.replicas, so it stays a
//     member. So do all if the StatefulSet is scaled to nothing, which is sleep, or deleted.
//   - A member that is scaled away cannot leave in time: it keeps its vote, and its volume. The
//     hook after the next upgrade removes it, or the StatefulSet is scaled up again.
//
// # Invariants
//
// At most one volume founds a control plane. A member that is only restarted never leaves. A
// volume is emptied only if the members confirm that it is not one of theirs.
package chart

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Origin is how the stores in a volume began.
type Origin string

// The origins, as the file contains them.
const (
	Empty   Origin = ""
	Founded Origin = "founded"
	Joined  Origin = "joined"
)

const (
	originFile = "origin"
	// leavingFile is beside the origin, which is still needed if the member stays.
	leavingFile = "leaving"
)

// Ordinal returns the number at the end of the name of a StatefulSet's pod.
func Ordinal(pod string) (int, error) {
	i := strings.LastIndexByte(pod, '-')
	n, err := strconv.Atoi(pod[i+1:])
	if i < 1 || err != nil || n < 0 {
		return 0, fmt.Errorf("pod %q: expected the name of a StatefulSet's pod, NAME-0", pod)
	}
	return n, nil
}

// Seen is what the start of an apiserver depends on.
type Seen struct {
	Ordinal int
	Origin  Origin
	// Leaving is true if the member had asked to leave, and Member whether it still is one.
	Leaving, Member bool
	// Recorded is true if the outer cluster records that the control plane has been founded.
	Recorded bool
	// Snapshot is true if a new control plane is to be restored from a snapshot.
	Snapshot bool
}

// Start is how an apiserver starts.
type Start struct {
	// Wipe empties the volume first, and Restore fills it from the snapshot.
	Wipe, Restore bool
	// Origin is Founded or Joined.
	Origin Origin
	// Record writes to the outer cluster that the control plane has been founded.
	Record bool
	// Lost is true if ordinal 0 joins because its volume is empty.
	Lost bool
}

// PlanStart decides how an apiserver starts.
func PlanStart(s Seen) Start {
	var out Start
	if s.Leaving && !s.Member {
		out.Wipe, s.Origin = true, Empty
	}
	switch {
	case s.Origin == Founded:
		out.Origin, out.Record = Founded, !s.Recorded
	case s.Origin == Joined, s.Ordinal > 0:
		out.Origin = Joined
	case s.Recorded:
		out.Origin, out.Lost = Joined, !out.Wipe
	default:
		out.Origin, out.Record, out.Restore = Founded, true, s.Snapshot
	}
	return out
}

// Leaves reports whether a pod that ends has been scaled away. deleted is true if its StatefulSet
// is gone or about to be.
func Leaves(ordinal, replicas int, deleted bool) bool {
	return !deleted && replicas > 0 && ordinal >= replicas
}

// Volume is the data directory of an apiserver.
type Volume string

// Origin reads how the stores in the volume began, and whether the member had asked to leave.
func (v Volume) Origin() (origin Origin, leaving bool, err error) {
	data, err := os.ReadFile(filepath.Join(string(v), originFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", false, err
	}
	origin = Origin(strings.TrimSpace(string(data)))
	switch origin {
	case Empty, Founded, Joined:
	default:
		return "", false, fmt.Errorf("%s/%s contains %q: expected founded or joined", v, originFile, origin)
	}
	_, err = os.Stat(filepath.Join(string(v), leavingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return origin, false, nil
	}
	return origin, err == nil, err
}

// SetOrigin records how the stores in the volume begin.
func (v Volume) SetOrigin(o Origin) error { return v.write(originFile, string(o)+"\n") }

// SetLeaving records that the member is about to leave.
func (v Volume) SetLeaving() error { return v.write(leavingFile, "") }

// Stay removes the record of SetLeaving.
func (v Volume) Stay() error {
	err := os.Remove(filepath.Join(string(v), leavingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Wipe removes everything in the volume, what SetLeaving wrote last.
func (v Volume) Wipe() error {
	entries, err := os.ReadDir(string(v))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.Name() == leavingFile || entry.Name() == "lost+found" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(string(v), entry.Name())); err != nil {
			return err
		}
	}
	return v.Stay()
}

// write replaces a file durably.
func (v Volume) write(name, content string) error {
	path := filepath.Join(string(v), name)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	dir, err := os.Open(string(v))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

package fence

import (
	"errors"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// ErrLapsed is returned for a pod that may not start now, because the node's Lease was not
// renewed in time. It may start once it is.
var ErrLapsed = errors.New("the node's lease is not held")

// ErrStopped is returned for a pod that was stopped. It never starts again.
var ErrStopped = errors.New("the pod was stopped when the node's lease expired")

// Node is a node's side of the protocol. Instants are durations since the machine booted.
// It is not safe for concurrent use and reads no clock. The zero value holds no Lease.
type Node struct {
	// deadline is when the last renewal that succeeded expires; 0 means that none did.
	deadline time.Duration
	// unsure is the earliest deadline among the renewals since then, which may have been
	// stored although no answer came; 0 means none.
	unsure time.Duration
	pods   map[types.UID]bool // true once stopped
}

// Renewal is an attempt to renew the Lease.
type Renewal struct {
	Sent    time.Duration
	Promise Promise
}

// Deadline returns when the pods have to stop, or 0 if no Lease is held.
func (n *Node) Deadline() time.Duration {
	if n.deadline != 0 && n.unsure != 0 {
		return min(n.deadline, n.unsure)
	}
	return n.deadline
}

// Send begins a renewal, which must not be sent before now. Renewals are sent one after
// the other, each conditional on the version that it replaces.
func (n *Node) Send(now, after time.Duration) Renewal {
	r := Renewal{Sent: now, Promise: Promise{After: after}}
	r.Promise.Pods = slices.Sorted(maps.Keys(n.pods))
	if expires := now + after; n.unsure == 0 || expires < n.unsure {
		n.unsure = expires
	}
	return r
}

// Renewed records that a renewal was stored. A success does not save pods whose deadline
// has passed; it returns those, which have to be killed.
func (n *Node) Renewed(r Renewal, now time.Duration) (stop []types.UID) {
	stop = n.Check(now)
	// The earlier renewals can no longer be stored: their version is not the current one.
	n.deadline, n.unsure = r.Sent+r.Promise.After, 0
	return stop
}

// Check makes the entered pods stopped if the deadline has passed, and returns those that
// became it.
func (n *Node) Check(now time.Duration) (stop []types.UID) {
	if d := n.Deadline(); d != 0 && now < d {
		return nil
	}
	n.deadline = 0
	for _, uid := range slices.Sorted(maps.Keys(n.pods)) {
		if !n.pods[uid] {
			n.pods[uid] = true
			stop = append(stop, uid)
		}
	}
	return stop
}

// Enter admits a pod. It must succeed before any process of the pod starts. It fails with
// ErrLapsed or ErrStopped.
func (n *Node) Enter(uid types.UID, now time.Duration) error {
	stopped, known := n.pods[uid]
	switch {
	case stopped:
		return ErrStopped
	case n.Deadline() == 0 || now >= n.Deadline():
		return ErrLapsed
	case !known:
		if n.pods == nil {
			n.pods = map[types.UID]bool{}
		}
		n.pods[uid] = false
	}
	return nil
}

// Known reports whether a pod has been entered and not left, and whether it is stopped.
func (n *Node) Known(uid types.UID) (known, stopped bool) {
	stopped, known = n.pods[uid]
	return known, stopped
}

// Len returns the number of pods that are entered or stopped.
func (n *Node) Len() int { return len(n.pods) }

// Leave forgets a pod of which nothing is left on the node.
func (n *Node) Leave(uid types.UID) { delete(n.pods, uid) }

// Record is what a Node's successor has to know, in a form for JSON.
type Record struct {
	// Boot identifies the time since the machine booted.
	Boot string `json:"boot"`
	// Deadline is [Node.Deadline] in nanoseconds.
	Deadline time.Duration `json:"deadline"`
	// Pods maps the uids of the entered pods to whether they are stopped.
	Pods map[types.UID]bool `json:"pods"`
}

// Record returns the state to write to disk.
func (n *Node) Record(boot string) Record {
	return Record{Boot: boot, Deadline: n.Deadline(), Pods: n.pods}
}

// Restore returns the successor of the node that wrote r. After a reboot, all pods are
// stopped: none of their processes is left.
func Restore(r Record, boot string) *Node {
	n := &Node{deadline: r.Deadline, pods: r.Pods}
	if r.Boot != boot {
		n.deadline = 0
	}
	return n
}

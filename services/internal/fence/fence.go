// Package fence is the protocol by which a node that is cut off stops pods before the
// control plane replaces them elsewhere. Kubernetes waits for ever instead: a pod of a
// StatefulSet on an unreachable node stays Terminating until the node returns or the pod is
// deleted by force. Pods opt in by the annotation [Annotation].
//
// # States
//
// A node's Lease, in each of its versions, is a promise that names pods and a duration T:
// "unless a later version is stored, no process of these pods runs any more T after this
// version was sent". The node names the pods that it has entered (see below). It renews
// the Lease as its heartbeat, so the promise costs no write of its own.
//
// On the node ([Node]), an opted-in pod is not known, entered, or stopped:
//
//	not known → entered   before its first process starts; only while the Lease is held
//	entered   → stopped   when the deadline passes: T after the last renewal that succeeded
//	                      was sent, by the node's own clock
//	either    → not known when the pod has ended and nothing of it is left on the node
//
// Stopped is final: its processes are killed, and it is never started again, even if the
// Lease is renewed a moment later. The states and the deadline are on disk before they
// count, so they outlive the agent.
//
// The control plane ([Due]) notes when it first saw each version of a Lease. If T plus
// T/[RateShare] plus [StopAllowance] have passed since, it reads the Lease again from the
// store. If the version is still the same, it deletes the named pods by uid and without
// grace. The workload's controller then creates replacements.
//
// # Safety
//
// Claim: when a pod is deleted by this rule, none of its processes runs, and none will.
// Let version L name the pod, sent by the node at s and seen by the control plane at r.
// L was sent before it was seen, so s ≤ r. Suppose that the read at d ≥ r + T + T/8 +
// allowance returns L. Reads are linearizable, so no later version was stored before d. A
// renewal extends the node's deadline only when its answer arrives, which is after it was
// stored; so before d no renewal after L extended it. The deadline of L is s + T by the
// node's clock, and by the bound on clock rates it has passed before r + T + T/8. At that
// moment the node made all pods that it had entered stopped, the pods named in L among
// them, and their processes were gone within the allowance, which is before d. A renewal
// that is stored after d does not start them again, because stopped is final.
//
// A renewal whose answer is lost may have been stored. Its promise then counts for the
// control plane but not for the node. If T has become shorter, its deadline may be the
// earlier one; [Node] obeys the earliest deadline of all that may be stored.
//
// Wall clocks take no part. What is assumed:
//
//   - Intervals that two machines measure differ by at most one in RateShare. The node
//     measures with CLOCK_BOOTTIME, which counts the time that the machine is suspended;
//     the control plane with CLOCK_MONOTONIC, which is late if it stands still, and so errs
//     on the safe side. A virtual machine that is paused without its clock noticing breaks
//     the assumption.
//   - The node kills within the allowance. The agent does this itself, through cgroups, in
//     a goroutine that shares no lock with the rest and needs neither the container runtime
//     nor the API. If the agent dies or is killed while it hangs, containers go on; its
//     supervisor starts it again, and the first thing that it does is to look at the record
//     and kill what is overdue. An agent that neither works nor dies, or that is not
//     restarted within the allowance, breaks the assumption: run it with a watchdog
//     (systemd's WatchdogSec), and a machine that hangs as a whole with a hardware one.
//   - A process that is killed in an uninterruptible system call, for instance on a dead
//     NFS mount, executes nothing more but is counted as running until the call returns.
//   - The agent's data directory lives as long as its containers.
//
// What was handed to storage or to the network before the kill may still arrive after it;
// storage that is shared over the network needs its own fence against that.
//
// # Failures
//
//   - The node is cut off: its pods stop after T, replacements are created after T + T/8 +
//     allowance. With a heartbeat of up to 4 s this is 12 s and 21.5 s.
//   - Only answers are lost, or only requests: the same.
//   - The control plane is down for longer than T: every node stops its opted-in pods. That
//     is the price of the promise, and the reason for the opt-in.
//   - The node reboots: nothing of the pods runs; the agent treats them as stopped.
//   - The container runtime does not answer: the kill does not need it.
//   - The control plane's process changes: the successor has seen no version, so it waits
//     the full time anew.
package fence

import (
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

const (
	// Annotation opts a pod in if its value is ByLease.
	Annotation = "keelson.dev/fencing"
	// ByLease is the only value of Annotation that has an effect.
	ByLease = "lease"

	// AfterAnnotation and PodsAnnotation are set by nodes on their Lease: the duration
	// after which the pods are stopped, and the pods' uids, separated by commas.
	AfterAnnotation = "keelson.dev/fence-after"
	PodsAnnotation  = "keelson.dev/fenced-pods"

	// RateShare bounds how much the rates of two clocks differ: by one in RateShare.
	RateShare = 8
	// StopAllowance is the time from a node's deadline until no process of the stopped
	// pods is left. It includes a restart of the agent by its supervisor.
	StopAllowance = 8 * time.Second

	// least is the shortest duration of a promise; it spans several heartbeats, so that a
	// lost one stops nothing.
	least = 12 * time.Second
	// beats is the number of heartbeats that a promise spans if they are slow.
	beats = 3
)

// After returns the duration to promise for an interval of heartbeats.
func After(heartbeat time.Duration) time.Duration { return max(least, beats*heartbeat) }

// Promise is what one version of a Lease promises.
type Promise struct {
	After time.Duration
	Pods  []types.UID
}

// Put sets or removes the annotations for the promise. It returns the changed map, which
// is annotations itself unless that is nil.
func (p Promise) Put(annotations map[string]string) map[string]string {
	if len(p.Pods) == 0 {
		delete(annotations, AfterAnnotation)
		delete(annotations, PodsAnnotation)
		return annotations
	}
	if annotations == nil {
		annotations = map[string]string{}
	}
	names := make([]string, len(p.Pods))
	for i, uid := range p.Pods {
		names[i] = string(uid)
	}
	slices.Sort(names) // the same pods are the same text
	annotations[AfterAnnotation], annotations[PodsAnnotation] = p.After.String(), strings.Join(names, ",")
	return annotations
}

// ParsePromise returns the promise in a Lease's annotations. ok is false if there is none, or
// none that can be read; such a Lease promises nothing.
func ParsePromise(annotations map[string]string) (p Promise, ok bool) {
	after, err := time.ParseDuration(annotations[AfterAnnotation])
	if err != nil || after <= 0 || annotations[PodsAnnotation] == "" {
		return Promise{}, false
	}
	for name := range strings.SplitSeq(annotations[PodsAnnotation], ",") {
		p.Pods = append(p.Pods, types.UID(name))
	}
	p.After = after
	return p, true
}

// Due returns how long after its first sight, by the observer's clock, a version of a Lease
// has to remain the current one until the pods that it names are stopped.
func Due(p Promise) time.Duration { return p.After + p.After/RateShare + StopAllowance }

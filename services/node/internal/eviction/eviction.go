// Package eviction keeps a node working when memory, disk space, inodes or process IDs run
// out: it reports pressure, refuses pods while there is pressure, and ends the pods that use
// more than they asked for. It follows the kubelet's node-pressure eviction.
//
// # Decisions
//
// A Policy is a list of thresholds, parsed from the node's flags. It is the only source of
// what the node keeps free: Allocatable subtracts the hard thresholds, conditions and
// evictions compare what is left with all of them. Step is a pure function of the policy, the
// previous State, what was Observed and the time:
//
//	met      a threshold with less left than it says. Once acted on, it stays met until the
//	         minimum reclaim is free on top.
//	due      met for the threshold's grace period, which is 0 for hard thresholds
//	pressure a node condition is true while one of its thresholds is met, and for the
//	         transition period after that
//
// Of the thresholds that are due, the first in the policy's order is acted on: memory, then
// disk space, inodes, process IDs. For disks, ended containers and unused images are removed
// first. If that is not enough, Rank orders the pods, and the first one that may be evicted
// is. Then the loop waits until that pod is gone before it looks again, so that one shortage
// never ends two pods where one is enough.
//
// Limits of local storage (emptyDir.sizeLimit, limits of ephemeral-storage) are compared with
// each pod's usage at the same time, whatever is left of the node.
//
// # Invariants
//
//   - Static pods, mirror pods and pods of a system priority are neither evicted nor refused.
//   - A hard threshold gives the evicted pod one second, a soft one the smaller of the pod's
//     grace period and the policy's maximum.
//   - A signal that cannot be read meets no threshold: the node does not end pods because a
//     file could not be parsed.
//   - A pod that was not measured is ranked first, as the kubelet does: what is not measured
//     is new.
//
// # Reaction and cost
//
// There are no notifications: the loop looks as often as memory could run out. Pace divides
// what is left above the nearest threshold by the fastest rate at which a resource can be
// used up, so that a look costs 0.1 ms every 10 s on an idle node, and every 100 ms when little
// is left. This needs nothing of the kernel (cgroup v1 and v2 differ in their notifications)
// and cannot miss a notification. Memory that is used up faster than a look can follow is the
// OOM killer's, which is told by oom_score_adj to prefer the same pods.
//
// The loop never waits for the API or for a measurement of disks.
package eviction

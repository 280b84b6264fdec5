package eviction

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Disk is disk space in bytes and inodes.
type Disk struct{ Bytes, Inodes int64 }

func (d *Disk) add(o Disk) { d.Bytes += o.Bytes; d.Inodes += o.Inodes }

// Use is what a pod uses.
type Use struct {
	// Memory is the working set in bytes, PIDs the number of processes and threads.
	Memory, PIDs int64
	Containers   []ContainerUse
	// Volumes holds the volumes that use the node's disk, by name.
	Volumes map[string]Disk
}

// ContainerUse is what a container uses.
type ContainerUse struct {
	Name   string
	Memory int64
	// Root is the writable layer, Logs all log files, rotated ones included.
	Root, Logs Disk
}

// Candidate is a pod that runs on the node. Use is nil if it could not be measured.
type Candidate struct {
	Pod *corev1.Pod
	Use *Use
}

// disk returns what a pod uses of the disk that a signal is about. If images have a disk of
// their own, writable layers are there, and logs and volumes are not.
func (u *Use) disk(signal Signal, imageDisk bool) Disk {
	var out Disk
	images := signal == ImageFSAvailable || signal == ImageFSInodesFree
	for _, c := range u.Containers {
		if !imageDisk || images {
			out.add(c.Root)
		}
		if !imageDisk || !images {
			out.add(c.Logs)
		}
	}
	if !imageDisk || !images {
		for _, v := range u.Volumes {
			out.add(v)
		}
	}
	return out
}

// order is what a candidate is compared by.
type order struct {
	unmeasured, over bool
	priority         int32
	excess           int64
}

func orderOf(c Candidate, signal Signal, imageDisk bool) order {
	out := order{unmeasured: c.Use == nil, priority: priority(c.Pod)}
	if c.Use == nil {
		return out
	}
	requests := resourcehelper.PodRequests(c.Pod, resourcehelper.PodResourcesOptions{})
	var used int64
	var request resource.Quantity
	switch signal.Resource() {
	case corev1.ResourceMemory:
		used, request = c.Use.Memory, requests[corev1.ResourceMemory]
	case corev1.ResourceEphemeralStorage:
		used, request = c.Use.disk(signal, imageDisk).Bytes, requests[corev1.ResourceEphemeralStorage]
	case resourceInodes:
		used = c.Use.disk(signal, imageDisk).Inodes
	default:
		// Processes have no requests, and priority alone comes first.
		out.unmeasured, out.excess = false, c.Use.PIDs
		return out
	}
	out.excess = used - request.Value()
	out.over = out.excess > 0
	return out
}

// Rank returns the pods in the order in which they are evicted for a signal: pods that use
// more than they request first; among these, and among the others, by priority, and within
// one priority by how much usage exceeds the request. For process IDs, which cannot be
// requested, by priority and usage. imageDisk is true if images have a disk of their own.
func Rank(list []Candidate, signal Signal, imageDisk bool) []Candidate {
	out := slices.Clone(list)
	first := func(a, b bool) int {
		switch {
		case a == b:
			return 0
		case a:
			return -1
		}
		return 1
	}
	keys := make(map[*corev1.Pod]order, len(out))
	for _, c := range out {
		keys[c.Pod] = orderOf(c, signal, imageDisk)
	}
	slices.SortStableFunc(out, func(a, b Candidate) int {
		x, y := keys[a.Pod], keys[b.Pod]
		return cmp.Or(first(x.unmeasured, y.unmeasured), first(x.over, y.over), cmp.Compare(x.priority, y.priority), cmp.Compare(y.excess, x.excess))
	})
	return out
}

func priority(p *corev1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}

// grace returns how long a pod that is evicted for a threshold has to end. For a soft
// threshold it is at most the policy's maximum; nil means the pod's own grace period.
func grace(p *Policy, t *Threshold, victim *corev1.Pod) *time.Duration {
	out := hardGrace
	if t.Hard() {
		return &out
	}
	if p.MaxPodGrace < 0 {
		return nil
	}
	out = p.MaxPodGrace
	if own := victim.Spec.TerminationGracePeriodSeconds; own != nil {
		out = min(out, time.Duration(*own)*time.Second)
	}
	return &out
}

// hardGrace is the grace period of pods that have to go at once, as the kubelet's.
const hardGrace = time.Second

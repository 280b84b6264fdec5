// Package usage measures what the machine and the node's pods use: CPU, memory, network,
// processes and disk.
//
// A measurement is made on request and serves all requests of the next seconds. There is one
// at a time: callers wait for the one that runs. What it costs:
//
//   - The machine ([Meter.Machine]): a few small files of /proc, and statfs; 0.4 ms.
//   - Processes ([Want] without Disk): one listing of the runtime's containers, which it
//     answers from memory, six small files for each pod and container, and the network
//     counters of each pod. For 100 pods of one container 40 ms of CPU with cgroup v1
//     (BenchmarkProcesses).
//   - Disk: additionally the runtime's statistics of all containers, a statfs for each
//     mounted volume, and a walk over each emptyDir and log directory. A walk is bounded in
//     entries (a million take 2.2 s), and a directory is not walked again before it has rested
//     for [restFactor] times as long as the last walks of all directories took, so that walks
//     take at most 1/[restFactor] of one core.
//
// While nothing asks, [Meter.Run] reads the CPU time of each container every 30 s: 10 ms for
// 100 pods, or 0.3 ‰ of a core. That is the window over which the first answer states a CPU
// rate: a rate covers at least [MinWindow].
//
// What cannot be read is absent: a container that ends during a measurement is left out of
// it, and one unreadable pod does not fail the others. The package must never change
// anything, follow a symbolic link out of a pod's volume, or enter a mount below one.
package usage

import (
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Report is one measurement. It is shared by its readers, who must not change it.
type Report struct {
	Time time.Time
	// Disk reports whether the pods' disk usage was measured.
	Disk bool
	Node Node
	Pods []Pod
}

// Pod returns the usage of the pod with the given UID, or nil.
func (r *Report) Pod(uid types.UID) *Pod {
	for i := range r.Pods {
		if r.Pods[i].UID == uid {
			return &r.Pods[i]
		}
	}
	return nil
}

// Node is the usage of the machine, including what does not belong to pods.
type Node struct {
	// Time is when the machine was measured, Start when it was booted.
	Time, Start time.Time
	CPU         CPU
	Memory      Memory
	Network     Network
	// FS is the file system of the node's data directory: volumes and logs. ImageFS is the
	// one that holds images and writable layers; its Used and InodesUsed are those of the
	// images if Report.Disk, else those of the file system.
	FS, ImageFS FS
	// PIDs is the number of processes and threads of the machine, MaxPIDs the largest
	// possible.
	PIDs, MaxPIDs uint64
}

// CPU is a CPU time.
type CPU struct {
	// Used is cumulative, since the container, pod or machine was started.
	Used time.Duration
	// NanoCores is the rate over Window, in 1e-9 cores. Window is 0 if the rate is not known
	// yet.
	NanoCores uint64
	Window    time.Duration
	// Periods is the number of enforcement periods of the CPU limit, ThrottledPeriods those
	// in which it was reached, and Throttled how long processes waited because of it.
	Periods, ThrottledPeriods uint64
	Throttled                 time.Duration
}

// Memory is an amount of memory, in bytes.
type Memory struct {
	// WorkingSet is Usage without the page cache that the kernel can drop at once. It is what
	// counts for evictions, autoscaling and limits.
	Usage, WorkingSet uint64
	// RSS is anonymous memory, Cache the page cache.
	RSS, Cache uint64
	// Limit is that of the container or pod, or the capacity of the machine; 0 means none.
	// Available is Limit - WorkingSet.
	Limit, Available uint64
	// PageFaults and MajorPageFaults are cumulative.
	PageFaults, MajorPageFaults uint64
}

// FS is the space of a file system, or what a directory takes of one, in bytes.
type FS struct {
	Capacity, Available, Used      uint64
	Inodes, InodesFree, InodesUsed uint64
}

// add adds what another directory takes.
func (f *FS) add(o FS) {
	f.Used += o.Used
	f.InodesUsed += o.InodesUsed
}

// Network is the traffic of a network namespace since it was created.
type Network struct {
	// Default is the name of the interface with the default route, "" if there is none.
	Default    string
	Interfaces []Interface
}

// Interface is the traffic of one interface.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Pod is the usage of one pod. Its CPU and memory include the sandbox and containers that
// have ended.
type Pod struct {
	UID             types.UID
	Namespace, Name string
	Start           time.Time
	CPU             CPU
	Memory          Memory
	// Network is empty for pods in the network of the host.
	Network    Network
	PIDs       uint64
	Containers []Container

	// Ephemeral is the node's disk that the pod takes: writable layers, logs, and emptyDirs on
	// disk. With Volumes, it is set only if Report.Disk.
	Ephemeral FS
	Volumes   []Volume
}

// Container returns the usage of a running container, or nil.
func (p *Pod) Container(name string) *Container {
	for i := range p.Containers {
		if p.Containers[i].Name == name {
			return &p.Containers[i]
		}
	}
	return nil
}

// Container is the usage of a running container.
type Container struct {
	Name, ID, Image string
	Start           time.Time
	CPU             CPU
	Memory          Memory
	PIDs            uint64
	// Rootfs is the writable layer, and Logs are all log files of the container. They are set
	// only if Report.Disk.
	Rootfs, Logs FS
}

// Volume is the space of one of a pod's volumes.
type Volume struct {
	Name string
	// Claim is the name of the PersistentVolumeClaim, if the volume has one.
	Claim string
	// Ephemeral is true for emptyDirs on disk, whose space counts as the pod's.
	Ephemeral bool
	// Partial is true if the directory has too many entries to count all of them: Used and
	// InodesUsed are lower bounds.
	Partial bool
	FS      FS
}

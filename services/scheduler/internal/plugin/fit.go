package plugin

import (
	"math"

	"keelson.dev/services/scheduler/internal/state"
)

// fit refuses nodes that lack resources that the pod requests.
type fit struct{ pod *state.Pod }

func (*fit) Name() string { return NodeResourcesFit }

func (f *fit) Check(n *state.Node) bool {
	if len(n.Pods)+1 > n.AllowedPods {
		return false
	}
	r := &f.pod.Requests
	if lacks(r.CPU, n.Allocatable.CPU, n.Requested.CPU) ||
		lacks(r.Memory, n.Allocatable.Memory, n.Requested.Memory) ||
		lacks(r.Ephemeral, n.Allocatable.Ephemeral, n.Requested.Ephemeral) {
		return false
	}
	for _, a := range r.Others {
		if lacks(a.Value, n.Allocatable.Other(a.Name), n.Requested.Other(a.Name)) {
			return false
		}
	}
	return true
}

func lacks(want, allocatable, requested int64) bool {
	return want > 0 && want > allocatable-requested
}

func (f *fit) Explain(n *state.Node) []string {
	out := make([]string, 0, 2)
	if len(n.Pods)+1 > n.AllowedPods {
		out = append(out, "Too many pods")
	}
	r := &f.pod.Requests
	if lacks(r.CPU, n.Allocatable.CPU, n.Requested.CPU) {
		out = append(out, "Insufficient cpu")
	}
	if lacks(r.Memory, n.Allocatable.Memory, n.Requested.Memory) {
		out = append(out, "Insufficient memory")
	}
	if lacks(r.Ephemeral, n.Allocatable.Ephemeral, n.Requested.Ephemeral) {
		out = append(out, "Insufficient ephemeral-storage")
	}
	for _, a := range r.Others {
		if lacks(a.Value, n.Allocatable.Other(a.Name), n.Requested.Other(a.Name)) {
			out = append(out, "Insufficient "+string(a.Name))
		}
	}
	return out
}

// Code implements Coder. A pod asks for a dozen extended resources at most.
func (f *fit) Code(n *state.Node) uint16 {
	var code uint16
	set := func(bit int, is bool) {
		if is {
			code |= 1 << min(bit, 15)
		}
	}
	r := &f.pod.Requests
	set(0, len(n.Pods)+1 > n.AllowedPods)
	set(1, lacks(r.CPU, n.Allocatable.CPU, n.Requested.CPU))
	set(2, lacks(r.Memory, n.Allocatable.Memory, n.Requested.Memory))
	set(3, lacks(r.Ephemeral, n.Allocatable.Ephemeral, n.Requested.Ephemeral))
	set(4, !f.fitsEmpty(n))
	for i, a := range r.Others {
		set(5+i, lacks(a.Value, n.Allocatable.Other(a.Name), n.Requested.Other(a.Name)))
	}
	return code
}

// Curable implements Curable.
func (f *fit) Curable(n *state.Node) bool { return f.fitsEmpty(n) }

// fitsEmpty reports whether the pod would fit the node if it were empty.
func (f *fit) fitsEmpty(n *state.Node) bool {
	empty := state.Node{Allocatable: n.Allocatable, AllowedPods: n.AllowedPods}
	return f.Check(&empty)
}

// LeastAllocated prefers nodes with much unallocated CPU and memory.
func LeastAllocated(p *state.Pod, n *state.Node) int64 {
	var sum, parts int64
	for _, r := range [2][2]int64{
		{n.ScoreCPU + p.ScoreCPU, n.Allocatable.CPU},
		{n.ScoreMemory + p.ScoreMemory, n.Allocatable.Memory},
	} {
		requested, capacity := r[0], r[1]
		if capacity == 0 {
			continue
		}
		parts++
		if requested <= capacity {
			sum += (capacity - requested) * MaxScore / capacity
		}
	}
	if parts == 0 {
		return 0
	}
	return sum / parts
}

// BalancedAllocation prefers nodes on which the pod makes the use of CPU and of memory
// more equal: 75 is no change, 100 the best and 50 the worst. Pods that request neither
// get 0 on every node.
func BalancedAllocation(p *state.Pod, n *state.Node) int64 {
	if p.Requests.CPU == 0 && p.Requests.Memory == 0 {
		return 0
	}
	with := balance(n.Requested.CPU+p.Requests.CPU, n.Requested.Memory+p.Requests.Memory, n)
	without := balance(n.Requested.CPU, n.Requested.Memory, n)
	return MaxScore/2 + (MaxScore/2+with-without)/2
}

func balance(cpu, memory int64, n *state.Node) int64 {
	if n.Allocatable.CPU == 0 || n.Allocatable.Memory == 0 {
		return MaxScore
	}
	a := min(float64(cpu)/float64(n.Allocatable.CPU), 1)
	b := min(float64(memory)/float64(n.Allocatable.Memory), 1)
	return int64((1 - math.Abs(a-b)/2) * MaxScore)
}

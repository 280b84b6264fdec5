package eviction

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Observation is how much of a resource is left.
type Observation struct{ Available, Capacity int64 }

// Observed is what was read of a machine. Signals that could not be read are missing.
type Observed map[Signal]Observation

// State is what a node remembers from one look to the next. The zero value is a node that
// has not looked yet.
type State struct {
	// since is when each threshold of the policy was first met; zero for those that are not.
	since []time.Time
	// acted is true for thresholds that were due and are not resolved.
	acted []bool
	// pressed is when each condition's thresholds were last met.
	pressed map[corev1.NodeConditionType]time.Time
}

// Verdict is what follows from a look.
type Verdict struct {
	// Pressure holds the node's conditions that are true.
	Pressure []corev1.NodeConditionType
	// Due is the threshold to act on, or nil.
	Due *Threshold
}

// conditions are the pressure conditions in the order in which they are named.
var conditions = []corev1.NodeConditionType{corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure}

// met reports whether less is left than a threshold says; with reclaim, less than it says
// and its minimum reclaim together.
func (t Threshold) met(o Observed, reclaim bool) bool {
	left, ok := o[t.Signal]
	if !ok {
		return false
	}
	want := t.Value.Of(left.Capacity)
	if reclaim {
		want.Add(t.Reclaim.Of(left.Capacity))
	}
	return left.Available < want.Value()
}

// Step returns the state after a look, and what follows from it.
func Step(p *Policy, s State, o Observed, now time.Time) (State, Verdict) {
	n := len(p.Thresholds)
	next := State{since: make([]time.Time, n), acted: make([]bool, n), pressed: map[corev1.NodeConditionType]time.Time{}}
	for c, at := range s.pressed {
		next.pressed[c] = at
	}
	var v Verdict
	for i, t := range p.Thresholds {
		acted := i < len(s.acted) && s.acted[i]
		if !t.met(o, acted) {
			continue
		}
		next.since[i] = now
		if i < len(s.since) && !s.since[i].IsZero() {
			next.since[i] = s.since[i]
		}
		next.pressed[t.Signal.Condition()] = now
		if now.Sub(next.since[i]) < t.Grace {
			continue
		}
		next.acted[i] = true
		if v.Due == nil {
			v.Due = &p.Thresholds[i]
		}
	}
	for _, c := range conditions {
		if at, ok := next.pressed[c]; ok && (at.Equal(now) || now.Sub(at) < p.Transition) {
			v.Pressure = append(v.Pressure, c)
		}
	}
	return next, v
}

// resolved reports whether a signal's thresholds have their minimum reclaim free.
func resolved(p *Policy, signal Signal, o Observed) bool {
	return !slices.ContainsFunc(p.Thresholds, func(t Threshold) bool { return t.Signal == signal && t.met(o, true) })
}

const (
	// idlePace and quickPace are the longest and the shortest time between two looks. The
	// first is the kubelet's.
	idlePace  = 10 * time.Second
	quickPace = 100 * time.Millisecond
)

// speed returns the fastest that a signal is assumed to fall, per second: memory as fast as
// two CPUs can touch fresh pages, disks as fast as a good one writes, process IDs as fast as
// two CPUs fork.
func (s Signal) speed() float64 {
	switch s.Resource() {
	case corev1.ResourceMemory:
		return 2 << 30
	case corev1.ResourceEphemeralStorage:
		return 1 << 30
	case resourceInodes:
		return 100_000
	}
	return 20_000
}

// Pace returns how long a node can go without a look: until the nearest threshold that is
// not met could be, or a soft threshold is due.
func Pace(p *Policy, s State, o Observed, now time.Time) time.Duration {
	wait := idlePace
	for i, t := range p.Thresholds {
		if i < len(s.since) && !s.since[i].IsZero() {
			if due := s.since[i].Add(t.Grace).Sub(now); due > 0 {
				wait = min(wait, due)
			}
			continue
		}
		left, ok := o[t.Signal]
		if !ok {
			continue
		}
		want := t.Value.Of(left.Capacity)
		seconds := float64(left.Available-want.Value()) / t.Signal.speed()
		wait = min(wait, time.Duration(seconds*float64(time.Second)))
	}
	return max(wait, quickPace)
}

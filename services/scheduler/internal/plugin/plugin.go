// Package plugin is the rules of scheduling: filters, which refuse nodes and say
// why in Kubernetes' words, and scores. One file each.
//
// A plugin is made for one pod (or for all pods alike) and asked about nodes. A
// local one depends on the node that it is asked about and on nothing else; a
// shared one depends on other nodes too, and follows the log of changes.
//
// It must never change the state that it reads, and never decide what to do about
// a refusal.
package plugin

import (
	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/services/scheduler/internal/state"
)

// The names of the plugins, as Kubernetes calls them.
const (
	NodeUnschedulable  = "NodeUnschedulable"
	TaintToleration    = "TaintToleration"
	NodeAffinity       = "NodeAffinity"
	NodePorts          = "NodePorts"
	NodeResourcesFit   = "NodeResourcesFit"
	VolumeRestrictions = "VolumeRestrictions"
	VolumeBinding      = "VolumeBinding"
	VolumeZone         = "VolumeZone"
	PodTopologySpread  = "PodTopologySpread"
	InterPodAffinity   = "InterPodAffinity"
	SchedulingGates    = "SchedulingGates"
)

// MaxScore is the best score that a plugin gives.
const MaxScore = 100

// Filter refuses nodes.
type Filter interface {
	Name() string
	// Check reports whether the node is feasible.
	Check(n *state.Node) bool
	// Explain says why a node will not do: one or more reasons.
	Explain(n *state.Node) []string
}

// Coder is a filter with several reasons. Nodes that it refuses with the same
// code are refused for the same reasons; the code of other filters is 0.
type Coder interface{ Code(n *state.Node) uint16 }

// Follower is a plugin that depends on more than the node it is asked about.
type Follower interface {
	// Apply takes in a change; false says that it must be made anew. So it must
	// when nodes came, went or got other labels; it is then not called.
	Apply(ch *state.Change) bool
	// Stale reports whether something else changed, so that it must be made anew.
	Stale() bool
	// Refresh is called before the first question after changes.
	Refresh()
}

// Shared is a filter that is a Follower.
type Shared interface {
	Filter
	Follower
}

// Env is what plugins know beside the pod.
type Env struct {
	*state.Cluster
	// DefaultSelector selects the pods that belong together with a pod: those of
	// its Services and of its controller. An empty one means that there is none.
	DefaultSelector func(p *state.Pod) labels.Selector
	// Selectors counts the changes that may change a default selector.
	Selectors uint64
}

// Local makes the filters that depend on one node only, in the order in which
// their refusals count.
func Local(p *state.Pod) []Filter {
	out := []Filter{newUnschedulable(p), newTaints(p)}
	if f := newNodeAffinity(p); f != nil {
		out = append(out, f)
	}
	if len(p.Ports) > 0 {
		out = append(out, &ports{p})
	}
	return append(out, &fit{p})
}

// Global makes the filters that depend on other nodes too.
func Global(env *Env, p *state.Pod) []Shared {
	var out []Shared
	if f := newSpread(env, p); f != nil {
		out = append(out, f)
	}
	return append(out, newInterPod(env, p))
}

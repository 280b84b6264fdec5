// Package plugin implements the rules of scheduling: filters, which refuse nodes and
// explain why in Kubernetes' words, and scores. Each is in a file of its own.
//
// A plugin is created for one pod (or for all pods that are alike) and asked about
// nodes. A local plugin depends only on the node that it is asked about. A shared one
// also depends on other nodes, and follows the log of changes.
//
// It must never change the state that it reads, nor decide what to do about a refusal.
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

// MaxScore is the highest score that a plugin gives.
const MaxScore = 100

// Filter refuses nodes.
type Filter interface {
	Name() string
	// Check reports whether the node is feasible.
	Check(n *state.Node) bool
	// Explain returns one or more reasons why a node is not feasible.
	Explain(n *state.Node) []string
}

// Curable is a filter whose refusals may end when pods leave the node. Refusals of other
// filters do not depend on the pods there.
type Curable interface {
	// Curable reports whether the node, which the filter refuses, might be feasible
	// without some of its pods. It is the same for nodes with the same code (see Coder).
	Curable(n *state.Node) bool
}

// IsCurable reports whether a refusal of the node might end when pods leave it.
func IsCurable(f Filter, n *state.Node) bool {
	c, ok := f.(Curable)
	return ok && c.Curable(n)
}

// Coder is a filter with several reasons. Nodes that it refuses with the same
// code are refused for the same reasons; the code of other filters is 0.
type Coder interface{ Code(n *state.Node) uint16 }

// Follower is a plugin that does not depend only on the node it is asked about.
type Follower interface {
	// Apply applies a change. It returns false if the plugin must be created again.
	// That is also so if nodes were added, removed or relabeled; Apply is not called
	// then.
	Apply(ch *state.Change) bool
	// Stale reports whether something else changed, so that the plugin must be created
	// again.
	Stale() bool
	// Refresh is called before the first question after changes.
	Refresh()
}

// Shared is a filter that is a Follower.
type Shared interface {
	Filter
	Follower
}

// Env is what plugins know besides the pod.
type Env struct {
	*state.Cluster
	// DefaultSelector returns the selector of the pods that belong together with a pod:
	// those of its Services and its controller. An empty selector means that there are
	// none.
	DefaultSelector func(p *state.Pod) labels.Selector
	// Selectors counts the changes that may change a default selector.
	Selectors uint64
}

// Local returns the filters that depend on one node only, in the order in which their
// refusals count.
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

// Global returns the filters that also depend on other nodes.
func Global(env *Env, p *state.Pod) []Shared {
	var out []Shared
	if f := newSpread(env, p); f != nil {
		out = append(out, f)
	}
	return append(out, newInterPod(env, p))
}

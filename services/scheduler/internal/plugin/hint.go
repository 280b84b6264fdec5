package plugin

import (
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"keelson.dev/services/scheduler/internal/state"
)

// Event is a change in the cluster that may help a pod that was refused.
type Event struct {
	// Node is the node that changed, in the ways of What.
	Node *state.Node
	What state.NodeChange
	// Came is a pod that is now on a node, and Went one that no longer is. Both are set
	// if a pod changed.
	Came, Went *state.Pod
	// Namespaces is true if the labels of a namespace changed.
	Namespaces bool
	// Volumes is true if a claim, a volume or a storage class changed.
	Volumes bool
}

// Helps reports whether an event may change the refusal of one of the plugins. It may
// return true needlessly, but must never return false for an event that helps.
func Helps(env *Env, p *state.Pod, plugins []string, ev *Event) bool {
	return slices.ContainsFunc(plugins, func(name string) bool {
		switch name {
		case NodeUnschedulable:
			return ev.What&(state.NodeAdded|state.NodeTaints) != 0 && newUnschedulable(p).Check(ev.Node)
		case TaintToleration:
			return ev.What&(state.NodeAdded|state.NodeTaints) != 0 && newTaints(p).Check(ev.Node)
		case NodeAffinity:
			f := newNodeAffinity(p)
			return ev.What&(state.NodeAdded|state.NodeLabels) != 0 && (f == nil || f.Check(ev.Node))
		case NodePorts:
			return ev.What&state.NodeAdded != 0 || (ev.Went != nil && len(ev.Went.Ports) > 0)
		case NodeResourcesFit:
			f := &fit{p}
			return ev.Went != nil || (ev.What&(state.NodeAdded|state.NodeAllocatable) != 0 && f.fitsEmpty(ev.Node))
		case PodTopologySpread:
			return spreadHelped(p, ev)
		case InterPodAffinity:
			return interPodHelped(env, p, ev)
		case VolumeRestrictions:
			return ev.Volumes || (ev.Went != nil && len(ev.Went.Claims) > 0)
		case VolumeBinding, VolumeZone:
			return ev.Volumes || ev.What&(state.NodeAdded|state.NodeLabels) != 0
		}
		return true
	})
}

func spreadHelped(p *state.Pod, ev *Event) bool {
	if ev.What&(state.NodeAdded|state.NodeRemoved|state.NodeLabels|state.NodeTaints) != 0 {
		return true
	}
	for _, q := range []*state.Pod{ev.Came, ev.Went} {
		if q == nil || q.Namespace != p.Namespace {
			continue
		}
		for i := range p.Object.Spec.TopologySpreadConstraints {
			if state.Selector(p.Object.Spec.TopologySpreadConstraints[i].LabelSelector).Matches(q.Labels) {
				return true
			}
		}
	}
	return false
}

func interPodHelped(env *Env, p *state.Pod, ev *Event) bool {
	if ev.Namespaces || ev.What&(state.NodeAdded|state.NodeLabels) != 0 {
		return true
	}
	matches := func(terms []state.Term, q *state.Pod) bool {
		var set labels.Set
		return slices.ContainsFunc(terms, func(t state.Term) bool {
			if t.NamespaceSelector != nil && set == nil {
				set = env.NamespaceLabels(q.Namespace)
			}
			return t.Matches(q.Namespace, set, q.Labels)
		})
	}
	if q := ev.Came; q != nil && matches(p.RequiredAffinity, q) {
		return true
	}
	q := ev.Went
	return q != nil && (matches(p.RequiredAntiAffinity, q) || matches(q.RequiredAntiAffinity, p) || matches(p.RequiredAffinity, q))
}

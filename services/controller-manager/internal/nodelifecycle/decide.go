package nodelifecycle

import (
	"reflect"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pressures lists the conditions that keep new pods off a node while they are true.
var pressures = []struct {
	condition corev1.NodeConditionType
	taint     string
}{
	{corev1.NodeMemoryPressure, corev1.TaintNodeMemoryPressure},
	{corev1.NodeDiskPressure, corev1.TaintNodeDiskPressure},
	{corev1.NodePIDPressure, corev1.TaintNodePIDPressure},
	{corev1.NodeNetworkUnavailable, corev1.TaintNodeNetworkUnavailable},
}

func condition(n *corev1.Node, t corev1.NodeConditionType) *corev1.NodeCondition {
	for i := range n.Status.Conditions {
		if n.Status.Conditions[i].Type == t {
			return &n.Status.Conditions[i]
		}
	}
	return nil
}

// ours reports whether this controller adds and removes a taint.
func ours(t *corev1.Taint) bool {
	switch t.Key {
	case corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable:
		return t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute
	case corev1.TaintNodeUnschedulable, corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure,
		corev1.TaintNodePIDPressure, corev1.TaintNodeNetworkUnavailable:
		return t.Effect == corev1.TaintEffectNoSchedule
	}
	return false
}

// Taints returns the desired taints of a node. evict is true if its pods may be evicted
// now; a NoExecute taint that is there already stays while the
// node is not ready.
func Taints(n *corev1.Node, evict bool, now time.Time) []corev1.Taint {
	var want []corev1.Taint
	add := func(key string, effect corev1.TaintEffect) {
		want = append(want, corev1.Taint{Key: key, Effect: effect})
	}
	ready := condition(n, corev1.NodeReady)
	lost := ""
	switch {
	case ready == nil:
		add(corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule)
	case ready.Status == corev1.ConditionFalse:
		lost = corev1.TaintNodeNotReady
	case ready.Status == corev1.ConditionUnknown:
		lost = corev1.TaintNodeUnreachable
	}
	if lost != "" {
		add(lost, corev1.TaintEffectNoSchedule)
		tainted := slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool {
			return t.Effect == corev1.TaintEffectNoExecute && (t.Key == corev1.TaintNodeNotReady || t.Key == corev1.TaintNodeUnreachable)
		})
		if evict || tainted {
			add(lost, corev1.TaintEffectNoExecute)
		}
	}
	for _, p := range pressures {
		if c := condition(n, p.condition); c != nil && c.Status == corev1.ConditionTrue {
			add(p.taint, corev1.TaintEffectNoSchedule)
		}
	}
	if n.Spec.Unschedulable {
		add(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	}

	var out []corev1.Taint
	for i := range n.Spec.Taints {
		if !ours(&n.Spec.Taints[i]) {
			out = append(out, n.Spec.Taints[i])
		}
	}
	for _, w := range want {
		i := slices.IndexFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == w.Key && t.Effect == w.Effect })
		if i >= 0 {
			w = n.Spec.Taints[i] // since when it holds is kept
		} else {
			at := metav1.NewTime(now)
			w.TimeAdded = &at
		}
		out = append(out, w)
	}
	if len(out) == len(n.Spec.Taints) && sameTaints(out, n.Spec.Taints) {
		return n.Spec.Taints
	}
	return out
}

// sameTaints reports whether two lists hold the same taints in any order.
func sameTaints(a, b []corev1.Taint) bool {
	for i := range a {
		if !slices.ContainsFunc(b, func(t corev1.Taint) bool { return reflect.DeepEqual(t, a[i]) }) {
			return false
		}
	}
	return true
}

// Unknown returns the conditions of a node that has been silent for too long, or nil if
// they are Unknown already.
func Unknown(n *corev1.Node, now time.Time) []corev1.NodeCondition {
	var out []corev1.NodeCondition
	at := metav1.NewTime(now)
	for _, t := range []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure} {
		c := condition(n, t)
		switch {
		case c == nil:
			out = append(out, corev1.NodeCondition{
				Type: t, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated",
				Message: "Kubelet never posted node status.", LastTransitionTime: at, LastHeartbeatTime: metav1.NewTime(n.CreationTimestamp.Time),
			})
		case c.Status != corev1.ConditionUnknown:
			out = append(out, corev1.NodeCondition{
				Type: t, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown",
				Message: "Kubelet stopped posting node status.", LastTransitionTime: at, LastHeartbeatTime: c.LastHeartbeatTime,
			})
		}
	}
	return out
}

// The zone rules of Kubernetes' node lifecycle controller: how many nodes of a zone may
// be lost before a network fault is assumed, and how fast pods are evicted.
const (
	unhealthyShare  = 0.55
	largeZone       = 50
	evictionEvery   = 10 * time.Second
	evictionSlowly  = 100 * time.Second
	minPartialNodes = 3
)

// Zone is the state of a failure domain.
type Zone uint8

// The states of a zone.
const (
	// Normal: lost nodes are evicted one after another.
	Normal Zone = iota
	// Partial: so many nodes are lost that pods are evicted slowly, or in a small zone
	// not at all.
	Partial
	// Full: every node is lost.
	Full
)

// zoneOf returns a node's failure domain.
func zoneOf(n *corev1.Node) string {
	return n.Labels[corev1.LabelTopologyRegion] + "/" + n.Labels[corev1.LabelTopologyZone]
}

// Pace returns the time between the evictions of two nodes of a zone; 0 means that none
// is evicted. As in Kubernetes, nothing is evicted while every zone is lost, because
// then this side is more likely to be cut off.
func Pace(nodes []*corev1.Node) map[string]time.Duration {
	type count struct{ all, lost int }
	zones := map[string]*count{}
	for _, n := range nodes {
		z := zones[zoneOf(n)]
		if z == nil {
			z = &count{}
			zones[zoneOf(n)] = z
		}
		z.all++
		if c := condition(n, corev1.NodeReady); c == nil || c.Status != corev1.ConditionTrue {
			z.lost++
		}
	}
	everything := true
	for _, z := range zones {
		everything = everything && state(z.all, z.lost) == Full
	}
	out := make(map[string]time.Duration, len(zones))
	for name, z := range zones {
		switch s := state(z.all, z.lost); {
		case everything:
			// In a cluster of one node, pods have nowhere else to run.
			out[name] = 0
		case s == Partial && z.all <= largeZone:
			out[name] = 0
		case s == Partial:
			out[name] = evictionSlowly
		default:
			out[name] = evictionEvery
		}
	}
	return out
}

func state(all, lost int) Zone {
	switch {
	case lost == all:
		return Full
	case lost >= minPartialNodes && float64(lost)/float64(all) >= unhealthyShare:
		return Partial
	}
	return Normal
}

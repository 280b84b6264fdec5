package plugin

import (
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/scheduler/internal/state"
)

// taints refuses nodes with a taint that the pod does not tolerate.
type taints struct{ tolerations []corev1.Toleration }

func newTaints(p *state.Pod) Filter { return &taints{p.Object.Spec.Tolerations} }

func (*taints) Name() string { return TaintToleration }

func (f *taints) Check(n *state.Node) bool { return tolerated(f.tolerations, n) }

var taintsReasons = []string{"node(s) had untolerated taint(s)"}

func (*taints) Explain(*state.Node) []string { return taintsReasons }

// tolerated reports whether no taint of the node keeps the pod away.
func tolerated(tolerations []corev1.Toleration, n *state.Node) bool {
	for i := range n.Object.Spec.Taints {
		t := &n.Object.Spec.Taints[i]
		if t.Effect != corev1.TaintEffectPreferNoSchedule && !tolerates(tolerations, t) {
			return false
		}
	}
	return true
}

func tolerates(tolerations []corev1.Toleration, taint *corev1.Taint) bool {
	for i := range tolerations {
		t := &tolerations[i]
		if t.Effect != "" && t.Effect != taint.Effect || t.Key != "" && t.Key != taint.Key {
			continue
		}
		switch t.Operator {
		case "", corev1.TolerationOpEqual:
			// Without a key, only "Exists" matches.
			if t.Key != "" && t.Value == taint.Value {
				return true
			}
		case corev1.TolerationOpExists:
			return true
		}
	}
	return false
}

// AvoidedTaints returns the number of PreferNoSchedule taints that the pod does not
// tolerate: fewer is better.
func AvoidedTaints(p *state.Pod, n *state.Node) int64 {
	var count int64
	for i := range n.Object.Spec.Taints {
		t := &n.Object.Spec.Taints[i]
		if t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerates(p.Object.Spec.Tolerations, t) {
			count++
		}
	}
	return count
}

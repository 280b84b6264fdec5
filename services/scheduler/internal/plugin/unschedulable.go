package plugin

import (
	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/scheduler/internal/state"
)

// unschedulable refuses cordoned nodes.
type unschedulable struct{ tolerated bool }

func newUnschedulable(p *state.Pod) Filter {
	cordon := corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}
	return &unschedulable{tolerates(p.Object.Spec.Tolerations, &cordon)}
}

func (*unschedulable) Name() string { return NodeUnschedulable }

func (f *unschedulable) Check(n *state.Node) bool {
	return f.tolerated || !n.Object.Spec.Unschedulable
}

var unschedulableReasons = []string{"node(s) were unschedulable"}

func (*unschedulable) Explain(*state.Node) []string { return unschedulableReasons }

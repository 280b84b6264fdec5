package daemonset

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	v1helper "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// fit describes whether a set's pods belong on a node.
type fit struct {
	// run is true if the node should have a pod of the set. keep is true if a pod that
	// already runs there may stay.
	run, keep bool
}

// fitter decides which nodes a set's pods belong on: those that match spec.nodeName,
// the node selector and the required node affinity, and whose taints the pods tolerate.
// An untolerated NoSchedule taint prevents new pods but lets running pods stay.
type fitter struct {
	nodeName    string
	affinity    nodeaffinity.RequiredNodeAffinity
	tolerations []corev1.Toleration
}

func newFitter(ds *appsv1.DaemonSet) fitter {
	spec := &ds.Spec.Template.Spec
	return fitter{
		nodeName:    spec.NodeName,
		affinity:    nodeaffinity.GetRequiredNodeAffinity(&corev1.Pod{Spec: corev1.PodSpec{NodeSelector: spec.NodeSelector, Affinity: spec.Affinity}}),
		tolerations: tolerations(spec),
	}
}

func (f fitter) on(n *corev1.Node) fit {
	if f.nodeName != "" && f.nodeName != n.Name {
		return fit{}
	}
	// An affinity that does not parse matches no node. Validation rejects it.
	if ok, err := f.affinity.Match(n); err != nil || !ok {
		return fit{}
	}
	untolerated := func(effects ...corev1.TaintEffect) bool {
		_, found := v1helper.FindMatchingUntoleratedTaint(klog.Background(), n.Spec.Taints, f.tolerations,
			func(t *corev1.Taint) bool { return slices.Contains(effects, t.Effect) }, true)
		return found
	}
	return fit{
		run:  !untolerated(corev1.TaintEffectNoExecute, corev1.TaintEffectNoSchedule),
		keep: !untolerated(corev1.TaintEffectNoExecute),
	}
}

// automatic lists the tolerations that every DaemonSet pod gets, as documented by
// Kubernetes, so that a node's daemons keep running whatever the node's condition is.
var automatic = []corev1.Toleration{
	{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeUnreachable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute},
	{Key: corev1.TaintNodeDiskPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeMemoryPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodePIDPressure, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
	{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule},
}

// tolerations returns the template's tolerations plus the automatic ones.
func tolerations(spec *corev1.PodSpec) []corev1.Toleration {
	out := slices.Clone(spec.Tolerations)
	add := func(t corev1.Toleration) {
		if !slices.ContainsFunc(out, func(have corev1.Toleration) bool { return have.MatchToleration(&t) }) {
			out = append(out, t)
		}
	}
	for _, t := range automatic {
		add(t)
	}
	if spec.HostNetwork {
		add(corev1.Toleration{Key: corev1.TaintNodeNetworkUnavailable, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoSchedule})
	}
	return out
}

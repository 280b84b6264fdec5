package daemonset

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/controller-manager/internal/cluster"
	"keelson.dev/services/controller-manager/internal/podtemplate"
)

const (
	hashLabel = appsv1.DefaultDaemonSetUniqueLabelKey
	// generationLabel has the template's generation, where the set has one from a
	// time before apps/v1.
	generationLabel = "pod-template-generation"
)

// newPod is a pod of a set for a node.
func newPod(ds *appsv1.DaemonSet, hash, node string) *corev1.Pod {
	p := podtemplate.Pod(&ds.Spec.Template, ds)
	if p.Labels == nil {
		p.Labels = map[string]string{}
	}
	p.Labels[hashLabel] = hash
	if g, ok := ds.Annotations[appsv1.DeprecatedTemplateGeneration]; ok {
		p.Labels[generationLabel] = g
	}
	p.Spec.Tolerations = tolerations(&p.Spec)
	if p.Spec.Affinity == nil {
		p.Spec.Affinity = &corev1.Affinity{}
	}
	if p.Spec.Affinity.NodeAffinity == nil {
		p.Spec.Affinity.NodeAffinity = &corev1.NodeAffinity{}
	}
	// The node was chosen by the template's own terms, which would only be looked at again.
	p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{
			{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node}},
		}}},
	}
	return p
}

// nodeOf is the node that a pod is bound to or was created for; empty if neither is
// known.
func nodeOf(p *corev1.Pod) string {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName
	}
	return cluster.TargetNode(p)
}

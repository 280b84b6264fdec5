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
	// generationLabel holds the template generation of sets that still have the
	// annotation for it, which predates apps/v1.
	generationLabel = "pod-template-generation"
)

// newPod returns a new pod of the set for a node.
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
	// The template's own required terms are replaced: the node was chosen by them, so
	// checking them again adds nothing.
	p.Spec.Affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchFields: []corev1.NodeSelectorRequirement{
			{Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node}},
		}}},
	}
	return p
}

// nodeOf returns the node that a pod is bound to, or else the one it was created for.
// It returns "" if neither is known.
func nodeOf(p *corev1.Pod) string {
	if p.Spec.NodeName != "" {
		return p.Spec.NodeName
	}
	return cluster.TargetNode(p)
}

package plugin

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"keelson.dev/services/scheduler/internal/state"
)

// nodeAffinity refuses nodes that nodeSelector or required node affinity do not
// match.
type nodeAffinity struct {
	required nodeaffinity.RequiredNodeAffinity
}

func newNodeAffinity(p *state.Pod) Filter {
	if len(p.Object.Spec.NodeSelector) == 0 && requiredTerms(p) == nil {
		return nil
	}
	return &nodeAffinity{nodeaffinity.GetRequiredNodeAffinity(p.Object)}
}

func requiredTerms(p *state.Pod) *corev1.NodeSelector {
	if a := p.Object.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		return a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	}
	return nil
}

func (*nodeAffinity) Name() string { return NodeAffinity }

func (f *nodeAffinity) Check(n *state.Node) bool {
	ok, _ := f.required.Match(n.Object) // terms that cannot be read match nothing
	return ok
}

var nodeAffinityReasons = []string{"node(s) didn't match Pod's node affinity/selector"}

func (*nodeAffinity) Explain(*state.Node) []string { return nodeAffinityReasons }

// OnlyNodes returns the names of the only nodes that the pod's affinity can match, as
// for pods of a DaemonSet. It returns false if the affinity names none.
func OnlyNodes(p *state.Pod) (sets.Set[string], bool) {
	required := requiredTerms(p)
	if required == nil || len(required.NodeSelectorTerms) == 0 {
		return nil, false
	}
	names := sets.New[string]()
	for i := range required.NodeSelectorTerms {
		var of sets.Set[string]
		for _, r := range required.NodeSelectorTerms[i].MatchFields {
			if r.Key != metav1.ObjectNameField || r.Operator != corev1.NodeSelectorOpIn {
				continue
			}
			if of == nil {
				of = sets.New(r.Values...)
			} else {
				of = of.Intersection(sets.New(r.Values...))
			}
		}
		if of == nil {
			return nil, false
		}
		names = names.Union(of)
	}
	return names, true
}

// PreferredNodes scores nodes by the pod's preferred node affinity. It is nil if the
// pod has none.
func PreferredNodes(p *state.Pod) func(n *state.Node) int64 {
	a := p.Object.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) == 0 {
		return nil
	}
	terms, err := nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	if err != nil {
		return nil
	}
	return func(n *state.Node) int64 { return terms.Score(n.Object) }
}

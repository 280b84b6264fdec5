package volume

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// stable maps the deprecated labels to those that replaced them.
var stable = map[string]string{
	corev1.LabelFailureDomainBetaZone:   corev1.LabelTopologyZone,
	corev1.LabelFailureDomainBetaRegion: corev1.LabelTopologyRegion,
}

// zonesOf returns the zones and regions that a volume's labels name. Several values are
// joined by "__".
func zonesOf(v *corev1.PersistentVolume) map[string]map[string]bool {
	var out map[string]map[string]bool
	for _, key := range []string{
		corev1.LabelTopologyZone, corev1.LabelTopologyRegion, corev1.LabelFailureDomainBetaZone, corev1.LabelFailureDomainBetaRegion,
	} {
		value, ok := v.Labels[key]
		if !ok {
			continue
		}
		set := map[string]bool{}
		for _, name := range strings.Split(value, "__") {
			set[name] = true
		}
		if out == nil {
			out = map[string]map[string]bool{}
		}
		out[key] = set
	}
	return out
}

// affinityOf parses a volume's node affinity. It returns nil if the volume has none.
func affinityOf(v *corev1.PersistentVolume) func(set labels.Set, node string) bool {
	if v.Spec.NodeAffinity == nil || v.Spec.NodeAffinity.Required == nil {
		return nil
	}
	required := v.Spec.NodeAffinity.Required
	if key, values, ok := oneLabel(required); ok { // as nearly all volumes of one node or zone have it
		return func(set labels.Set, _ string) bool {
			have, ok := set[key]
			return ok && slices.Contains(values, have)
		}
	}
	selector := nodeaffinity.NewLazyErrorNodeSelector(required)
	return func(set labels.Set, node string) bool {
		ok, err := selector.Match(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node, Labels: set}})
		return ok && err == nil
	}
}

func oneLabel(s *corev1.NodeSelector) (key string, values []string, ok bool) {
	if len(s.NodeSelectorTerms) != 1 || len(s.NodeSelectorTerms[0].MatchFields) > 0 || len(s.NodeSelectorTerms[0].MatchExpressions) != 1 {
		return "", nil, false
	}
	e := &s.NodeSelectorTerms[0].MatchExpressions[0]
	return e.Key, e.Values, e.Operator == corev1.NodeSelectorOpIn
}

// allowed reports whether a storage class provisions volumes for a node.
func allowed(terms []corev1.TopologySelectorTerm, set labels.Set) bool {
	if len(terms) == 0 {
		return true
	}
	return slices.ContainsFunc(terms, func(t corev1.TopologySelectorTerm) bool {
		if len(t.MatchLabelExpressions) == 0 {
			return false
		}
		for _, e := range t.MatchLabelExpressions {
			if have, ok := set[e.Key]; !ok || !slices.Contains(e.Values, have) {
				return false
			}
		}
		return true
	})
}

package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
)

// PodTopology copies the zone and region labels of the node to a binding, from where they reach
// the pod (KEP-4742).
type PodTopology struct{ State State }

// Admit implements Mutator.
func (p *PodTopology) Admit(_ context.Context, a *Attributes) error {
	b, ok := a.Object.(*corev1.Binding)
	if !ok || a.Operation != Create || b.Target.Name == "" {
		return nil
	}
	node, ok := p.State.Get("", "nodes", "", b.Target.Name)
	if !ok {
		return nil
	}
	for _, key := range []string{corev1.LabelTopologyZone, corev1.LabelTopologyRegion} {
		value, ok := node.GetLabels()[key]
		if !ok {
			continue
		}
		if b.Labels == nil {
			b.Labels = make(map[string]string, 2)
		}
		b.Labels[key] = value
	}
	return nil
}

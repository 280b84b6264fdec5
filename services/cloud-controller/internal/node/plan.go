package node

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/cloud-controller/internal/provider"
)

const (
	// uninitialized is the taint of a Node that waits for its cloud
	// (k8s.io/cloud-provider/api).
	uninitialized = "node.cloudprovider.kubernetes.io/uninitialized"
	// providedIP is the annotation with the address that the agent was configured with.
	providedIP = "alpha.kubernetes.io/provided-node-ip"
	// simulatedLabel marks Nodes without a machine.
	simulatedLabel = "keelson.dev/simulated"
)

// initialized returns the Node with its machine's provider id and labels, and without
// the taint. It returns nil if there is nothing to change.
func initialized(n *corev1.Node, i provider.Instance) *corev1.Node {
	out := n.DeepCopy()
	changed := false
	if out.Spec.ProviderID == "" && i.ProviderID != "" {
		out.Spec.ProviderID, changed = i.ProviderID, true
	}
	for key, value := range labels(i) {
		if value == "" || out.Labels[key] == value {
			continue
		}
		if out.Labels == nil {
			out.Labels = map[string]string{}
		}
		out.Labels[key], changed = value, true
	}
	before := len(out.Spec.Taints)
	out.Spec.Taints = slices.DeleteFunc(out.Spec.Taints, func(t corev1.Taint) bool { return t.Key == uninitialized })
	if !changed && len(out.Spec.Taints) == before {
		return nil
	}
	return out
}

// labels returns a machine's labels, under their current and deprecated names.
func labels(i provider.Instance) map[string]string {
	return map[string]string{
		corev1.LabelInstanceTypeStable:      i.InstanceType,
		corev1.LabelInstanceType:            i.InstanceType,
		corev1.LabelTopologyZone:            i.Zone,
		corev1.LabelFailureDomainBetaZone:   i.Zone,
		corev1.LabelTopologyRegion:          i.Region,
		corev1.LabelFailureDomainBetaRegion: i.Region,
	}
}

// addresses returns the Node's addresses as the cloud reports them. A host name that the
// node reported itself is kept, and the address that its agent was configured with
// comes first among those of its type.
func addresses(n *corev1.Node, i provider.Instance) []corev1.NodeAddress {
	var out []corev1.NodeAddress
	hasName := false
	for _, a := range i.Addresses {
		address := corev1.NodeAddress{Type: corev1.NodeAddressType(a.Type), Address: a.Address}
		if a.Address == "" || slices.Contains(out, address) {
			continue
		}
		hasName = hasName || address.Type == corev1.NodeHostName
		out = append(out, address)
	}
	if !hasName {
		for _, a := range n.Status.Addresses {
			if a.Type == corev1.NodeHostName {
				out = append(out, a)
			}
		}
	}
	first := n.Annotations[providedIP]
	rank := func(a corev1.NodeAddress) int {
		if first != "" && a.Address == first {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(out, func(a, b corev1.NodeAddress) int { return cmp.Compare(rank(a), rank(b)) })
	return out
}

func waits(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == uninitialized })
}

func simulated(n *corev1.Node) bool { return n.Labels[simulatedLabel] == "true" }

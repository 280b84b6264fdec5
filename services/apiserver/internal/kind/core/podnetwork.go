package core

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// podNetwork returns what a node must know of the pods of other nodes to enforce network policies:
// their names, labels and node, whether they use the network of the node, their phase, addresses
// and named ports. It must never show anything else, because nodes may read it of every pod.
func podNetwork(p *corev1.Pod) *corev1.Pod {
	out := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion,
			CreationTimestamp: p.CreationTimestamp, Labels: p.Labels,
		},
		Spec:   corev1.PodSpec{NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork},
		Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs},
	}
	out.Spec.Containers = namedPorts(p.Spec.Containers)
	out.Spec.InitContainers = namedPorts(p.Spec.InitContainers)
	return out
}

// namedPorts returns the containers that have named ports, with nothing but these.
func namedPorts(list []corev1.Container) (out []corev1.Container) {
	for i := range list {
		var ports []corev1.ContainerPort
		for _, port := range list[i].Ports {
			if port.Name != "" {
				ports = append(ports, corev1.ContainerPort{Name: port.Name, ContainerPort: port.ContainerPort, Protocol: port.Protocol})
			}
		}
		if ports != nil {
			out = append(out, corev1.Container{Ports: ports})
		}
	}
	return out
}

// samePodNetwork compares what podNetwork shows. The ports of a pod do not change.
func samePodNetwork(a, b *corev1.Pod) bool {
	return a.UID == b.UID && a.Spec.NodeName == b.Spec.NodeName && a.Spec.HostNetwork == b.Spec.HostNetwork &&
		a.Status.Phase == b.Status.Phase && a.Status.PodIP == b.Status.PodIP && slices.Equal(a.Status.PodIPs, b.Status.PodIPs) &&
		maps.Equal(a.Labels, b.Labels)
}

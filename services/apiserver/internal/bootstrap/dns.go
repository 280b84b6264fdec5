package bootstrap

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/services/apiserver/internal/resource"
)

// dnsService publishes the address of the cluster's DNS and reserves it, so that no other Service
// is allocated it. It has no selector, because every node answers on the address itself.
func dnsService(ip netip.Addr) *corev1.Service {
	s := service(ip, nil)
	s.ObjectMeta = metav1.ObjectMeta{
		Namespace: metav1.NamespaceSystem, Name: "kube-dns",
		Labels: map[string]string{"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
	}
	s.Spec.Ports = []corev1.ServicePort{
		{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP},
		{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP},
	}
	return s
}

// asItIs leaves an existing object unchanged.
func asItIs(_, have resource.Object) resource.Object { return have }

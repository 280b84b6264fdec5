package bootstrap

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/apiserver/internal/resource"
)

const (
	serviceName = "kubernetes"
	portName    = "https"
	servicePort = 443
	// grpcName and grpcPort are for clients that look the gRPC API up. The apiservers serve it
	// on the same port.
	grpcName    = "grpc"
	grpcPort    = 6444
	defaultPort = 6443
)

// port returns the HTTPS port of the apiservers. If they differ, that of the first is used.
func port(present []netip.AddrPort) int32 {
	if len(present) == 0 {
		return defaultPort
	}
	return int32(present[0].Port())
}

// addresses returns, in order, the addresses of the same family as the first one, because an
// EndpointSlice holds a single family.
func addresses(present []netip.AddrPort) (list []string) {
	for _, a := range present {
		if a.Addr().Is6() == present[0].Addr().Is6() {
			list = append(list, a.Addr().String())
		}
	}
	return slices.Compact(list)
}

func service(ip netip.Addr, present []netip.AddrPort) *corev1.Service {
	family, policy := corev1.IPv4Protocol, corev1.IPFamilyPolicySingleStack
	if ip.Is6() {
		family = corev1.IPv6Protocol
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceDefault, Name: serviceName,
			Labels: map[string]string{"provider": "kubernetes", "component": "apiserver"},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip.String(), ClusterIPs: []string{ip.String()},
			IPFamilies: []corev1.IPFamily{family}, IPFamilyPolicy: &policy, SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{
				{Name: portName, Port: servicePort, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(port(present))},
				{Name: grpcName, Port: grpcPort, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(port(present))},
			},
		},
	}
}

func nextService(want, have resource.Object) resource.Object {
	next, fresh := have.DeepCopyObject().(*corev1.Service), want.(*corev1.Service)
	next.Labels = merged(fresh.Labels, next.Labels, true)
	next.Spec.Type, next.Spec.Ports, next.Spec.SessionAffinity = fresh.Spec.Type, fresh.Spec.Ports, fresh.Spec.SessionAffinity
	return next
}

func endpointSlice(present []netip.AddrPort) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceDefault, Name: serviceName,
			Labels: map[string]string{discoveryv1.LabelServiceName: serviceName},
		},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	if len(present) > 0 && present[0].Addr().Is6() {
		s.AddressType = discoveryv1.AddressTypeIPv6
	}
	ready, protocol, number := true, corev1.ProtocolTCP, port(present)
	for _, ip := range addresses(present) {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}})
	}
	for _, name := range []string{portName, grpcName} {
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Protocol: &protocol, Port: &number})
	}
	return s
}

func nextSlice(want, have resource.Object) resource.Object {
	next, fresh := have.DeepCopyObject().(*discoveryv1.EndpointSlice), want.(*discoveryv1.EndpointSlice)
	next.Labels = merged(fresh.Labels, next.Labels, true)
	next.Endpoints, next.Ports = fresh.Endpoints, fresh.Ports
	return next
}

func endpoints(present []netip.AddrPort) *corev1.Endpoints {
	e := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{
		Namespace: metav1.NamespaceDefault, Name: serviceName,
		Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"},
	}}
	subset := corev1.EndpointSubset{Ports: []corev1.EndpointPort{
		{Name: portName, Port: port(present), Protocol: corev1.ProtocolTCP},
		{Name: grpcName, Port: port(present), Protocol: corev1.ProtocolTCP},
	}}
	for _, ip := range addresses(present) {
		subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: ip})
	}
	if len(subset.Addresses) > 0 {
		e.Subsets = []corev1.EndpointSubset{subset}
	}
	return e
}

func nextEndpoints(want, have resource.Object) resource.Object {
	next, fresh := have.DeepCopyObject().(*corev1.Endpoints), want.(*corev1.Endpoints)
	next.Labels = merged(fresh.Labels, next.Labels, true)
	next.Subsets = fresh.Subsets
	return next
}

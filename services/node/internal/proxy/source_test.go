package proxy

import (
	"net/netip"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// table is a Source that a test fills.
type table struct {
	mu       sync.Mutex
	services map[types.NamespacedName]*corev1.Service
	slices   map[types.NamespacedName][]*discoveryv1.EndpointSlice
	notify   []func(Change)
	synced   chan struct{}
}

func newTable() *table {
	t := &table{
		services: map[types.NamespacedName]*corev1.Service{},
		slices:   map[types.NamespacedName][]*discoveryv1.EndpointSlice{},
		synced:   make(chan struct{}),
	}
	close(t.synced)
	return t
}

func keyOf(s *corev1.Service) types.NamespacedName {
	return types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
}

// set replaces a Service and its slices.
func (t *table) set(svc *corev1.Service, slices ...*discoveryv1.EndpointSlice) {
	key := keyOf(svc)
	t.mu.Lock()
	t.services[key] = svc
	t.slices[key] = slices
	t.mu.Unlock()
	t.changed(key)
}

func (t *table) remove(svc *corev1.Service) {
	t.mu.Lock()
	delete(t.services, keyOf(svc))
	delete(t.slices, keyOf(svc))
	t.mu.Unlock()
	t.changed(keyOf(svc))
}

func (t *table) changed(key types.NamespacedName) {
	for _, f := range t.notify {
		f(Change{Service: key})
	}
}

func (t *table) Service(namespace, name string) (*corev1.Service, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, ok := t.services[types.NamespacedName{Namespace: namespace, Name: name}]
	return s, ok
}

func (t *table) Services() []*corev1.Service {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]*corev1.Service, 0, len(t.services))
	for _, s := range t.services {
		out = append(out, s)
	}
	return out
}

func (t *table) ServiceSlices(namespace, name string) []*discoveryv1.EndpointSlice {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.slices[types.NamespacedName{Namespace: namespace, Name: name}]
}

func (t *table) Subscribe(f func(Change)) { t.notify = append(t.notify, f) }
func (t *table) Synced() <-chan struct{}  { return t.synced }

// testNode returns node-1 of a cluster with the usual ranges.
func testNode() Node {
	return Node{
		Name:        "node-1",
		Addresses:   []netip.Addr{netip.MustParseAddr("10.89.0.11")},
		ClusterCIDR: netip.MustParsePrefix("10.244.0.0/16"),
		ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16"),
		NodeLocal:   []netip.Addr{netip.MustParseAddr("10.96.0.10")},
	}
}

// service returns a ClusterIP Service with port 80, modified by edits.
func service(name, clusterIP string, edits ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1000, 0))},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: clusterIP,
			Ports: []corev1.ServicePort{{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80}},
		},
	}
	for _, edit := range edits {
		edit(s)
	}
	return s
}

func nodePort(port int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort = port
	}
}

func loadBalancer(port int32, addresses ...string) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.Ports[0].NodePort = port
		for _, a := range addresses {
			s.Status.LoadBalancer.Ingress = append(s.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a})
		}
	}
}

func protocol(p corev1.Protocol) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Ports[0].Protocol = p }
}

func externalLocal(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}

func internalLocal(s *corev1.Service) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	s.Spec.InternalTrafficPolicy = &local
}

func sticky(seconds int32) func(*corev1.Service) {
	return func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
	}
}

// slice returns the EndpointSlice of a Service. Endpoints are written as "address@node",
// with an optional suffix: "!" is not ready, "-" is terminating but serving, "x" is
// terminating and not serving.
func slice(svc *corev1.Service, port int32, endpoints ...string) *discoveryv1.EndpointSlice {
	p := svc.Spec.Ports[0]
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: svc.Namespace, Name: svc.Name + "-1", Labels: map[string]string{discoveryv1.LabelServiceName: svc.Name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &p.Name, Protocol: &p.Protocol, Port: &port}},
	}
	for _, text := range endpoints {
		s.Endpoints = append(s.Endpoints, parseEndpoint(text))
	}
	return s
}

func parseEndpoint(text string) discoveryv1.Endpoint {
	yes, no := true, false
	e := discoveryv1.Endpoint{Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no}}
	switch {
	case strings.HasSuffix(text, "!"):
		e.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &no}
	case strings.HasSuffix(text, "-"):
		e.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}
	case strings.HasSuffix(text, "x"):
		e.Conditions = discoveryv1.EndpointConditions{Ready: &no, Serving: &no, Terminating: &yes}
	}
	address, node, _ := strings.Cut(strings.TrimRight(text, "!-x"), "@")
	e.Addresses = []string{address}
	if node != "" {
		e.NodeName = &node
	}
	return e
}

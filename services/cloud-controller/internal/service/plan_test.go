package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func testNode(name, addr string, edits ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: addr}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, edit := range edits {
		edit(n)
	}
	return n
}

func notReady(n *corev1.Node) { n.Status.Conditions[0].Status = corev1.ConditionUnknown }

func labelled(key, value string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Labels = map[string]string{key: value} }
}

func testService(edits ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "uid-1"},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeLoadBalancer, ClusterIP: "10.96.0.100",
			Ports: []corev1.ServicePort{{Name: "http", Protocol: corev1.ProtocolTCP, Port: 80, NodePort: 30080}},
		},
	}
	for _, edit := range edits {
		edit(s)
	}
	return s
}

func local(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	s.Spec.HealthCheckNodePort = 31000
}

// testSlice makes endpoints "node" (ready), "node!" (not ready), "node-"
// (terminating but serving).
func testSlice(endpoints ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{
		Namespace: "default", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"},
	}}
	for i, text := range endpoints {
		node := strings.TrimRight(text, "!-")
		ready := node == text
		serving := ready || strings.HasSuffix(text, "-")
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{fmt.Sprintf("10.244.0.%d", i+2)}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &ready, Serving: &serving},
		})
	}
	return s
}

func TestTargets(t *testing.T) {
	t.Parallel()
	deleted := metav1.Now()
	nodes := []*corev1.Node{
		testNode("c", "10.89.0.13"), testNode("a", "10.89.0.11"), testNode("b", "10.89.0.12"),
		testNode("not-ready", "10.89.0.14", notReady),
		testNode("excluded", "10.89.0.15", labelled(excludeLabel, "")),
		testNode("simulated", "10.89.0.16", labelled(simulatedLabel, "true")),
		testNode("leaving", "10.89.0.17", func(n *corev1.Node) { n.Spec.Taints = []corev1.Taint{{Key: toBeDeleted}} }),
		testNode("deleted", "10.89.0.18", func(n *corev1.Node) { n.DeletionTimestamp = &deleted }),
		testNode("homeless", ""),
		testNode("IPv6", "fd00::1"),
		testNode("silent", "10.89.0.19", func(n *corev1.Node) { n.Status.Conditions = nil }),
	}
	for _, row := range []struct {
		name string
		svc  *corev1.Service
		eps  []string
		want string
	}{
		{"all that are Ready", testService(), nil, "a:0 b:0 c:0"},
		{"policy Cluster does not ask for endpoints", testService(), []string{"b"}, "a:0 b:0 c:0"},
		{"policy Local, by endpoints", testService(local), []string{"b", "a", "b", "not-ready"}, "a:1 b:2"},
		{"not those that are not ready", testService(local), []string{"a!", "b"}, "b:1"},
		{"those that drain, when a node has no other", testService(local), []string{"a-", "b-", "b"}, "a:1 b:1"},
		{"none", testService(local), nil, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var got []string
			for _, target := range targets(row.svc, nodes, []*discoveryv1.EndpointSlice{testSlice(row.eps...)}) {
				got = append(got, fmt.Sprintf("%s:%d", target.Name, target.Weight))
			}
			if text := strings.Join(got, " "); text != row.want {
				t.Errorf("got %q, want %q", text, row.want)
			}
		})
	}
}

func TestRequest(t *testing.T) {
	t.Parallel()
	svc := testService(local, func(s *corev1.Service) {
		s.Spec.LoadBalancerIP = "10.90.0.9"
		s.Spec.LoadBalancerSourceRanges = []string{" 192.0.2.7/24", "junk"}
	})
	r := request("c", svc, nil, nil)
	if r.Cluster != "c" || r.ID != "uid-1" || r.Service != "default/web" || r.HealthCheckNodePort != 31000 ||
		r.RequestedAddress != netip.MustParseAddr("10.90.0.9") || len(r.Ports) != 1 || r.Ports[0].NodePort != 30080 ||
		!slices.Equal(r.SourceRanges, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}) {
		t.Errorf("%+v", r)
	}
}

func TestWants(t *testing.T) {
	t.Parallel()
	class := func(c string) func(*corev1.Service) {
		return func(s *corev1.Service) { s.Spec.LoadBalancerClass = &c }
	}
	deleted := metav1.Now()
	for _, row := range []struct {
		name string
		svc  *corev1.Service
		want bool
	}{
		{"no class", testService(), true},
		{"our class", testService(class(Class)), true},
		{"another class", testService(class("example.com/other")), false},
		{"another type", testService(func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }), false},
		{"being deleted", testService(func(s *corev1.Service) { s.DeletionTimestamp = &deleted }), false},
	} {
		if got := wants(row.svc); got != row.want {
			t.Errorf("%s: %v", row.name, got)
		}
	}
}

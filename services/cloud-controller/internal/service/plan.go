package service

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"keelson.dev/services/cloud-controller/internal/provider"
)

const (
	// Finalizer keeps a Service until its load balancer is gone (KEP-980).
	Finalizer = "service.kubernetes.io/load-balancer-cleanup"
	// excludeLabel keeps a node out of load balancers (KEP-1143).
	excludeLabel = "node.kubernetes.io/exclude-from-external-load-balancers"
	// toBeDeleted is the cluster autoscaler's taint on a node that is about to be
	// deleted.
	toBeDeleted = "ToBeDeletedByClusterAutoscaler"
	// simulatedLabel marks Nodes without a machine.
	simulatedLabel = "keelson.dev/simulated"
)

// Class is the spec.loadBalancerClass that this controller serves, besides Services
// without a class.
const Class = "keelson.dev/local"

// wants reports whether a Service should have a load balancer from this controller.
func wants(svc *corev1.Service) bool {
	class := svc.Spec.LoadBalancerClass
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.DeletionTimestamp == nil && (class == nil || *class == Class)
}

// has reports whether a Service has, or may have, a load balancer from this controller.
func has(svc *corev1.Service) bool { return slices.Contains(svc.Finalizers, Finalizer) }

// request returns the load balancer to request from the provider.
func request(cluster string, svc *corev1.Service, nodes []*corev1.Node, epSlices []*discoveryv1.EndpointSlice) provider.LoadBalancer {
	lb := provider.LoadBalancer{
		Cluster: cluster, ID: string(svc.UID), Service: svc.Namespace + "/" + svc.Name,
		Targets: targets(svc, nodes, epSlices),
	}
	for _, p := range svc.Spec.Ports {
		lb.Ports = append(lb.Ports, provider.Port{Protocol: string(p.Protocol), Port: p.Port, NodePort: p.NodePort})
	}
	for _, s := range svc.Spec.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(strings.TrimSpace(s)); err == nil {
			lb.SourceRanges = append(lb.SourceRanges, p.Masked())
		}
	}
	if addr, err := netip.ParseAddr(svc.Spec.LoadBalancerIP); err == nil { //nolint:staticcheck // deprecated, not removed
		lb.RequestedAddress = addr
	}
	if keepsLocal(svc) {
		lb.HealthCheckNodePort = svc.Spec.HealthCheckNodePort
	}
	return lb
}

func keepsLocal(svc *corev1.Service) bool {
	return svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// targets returns the nodes that take the traffic, by name: those that are Ready, and
// with policy Local those that have an endpoint, weighted by the number of endpoints.
func targets(svc *corev1.Service, nodes []*corev1.Node, epSlices []*discoveryv1.EndpointSlice) []provider.Target {
	local := localEndpoints(epSlices)
	var out []provider.Target
	for _, n := range nodes {
		addr, ok := internalIP(n)
		if !ok || !takesTraffic(n) {
			continue
		}
		t := provider.Target{Name: n.Name, Address: addr}
		if keepsLocal(svc) {
			if t.Weight = local[n.Name]; t.Weight == 0 {
				continue
			}
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b provider.Target) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// localEndpoints counts the serving endpoints on each node: the ready ones or, if there
// are none, those that are terminating but still serve, as kube-proxy does.
func localEndpoints(epSlices []*discoveryv1.EndpointSlice) map[string]int32 {
	ready, draining := map[string]map[string]bool{}, map[string]map[string]bool{}
	for _, s := range epSlices {
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			if e.NodeName == nil || len(e.Addresses) == 0 {
				continue
			}
			isReady := e.Conditions.Ready == nil || *e.Conditions.Ready
			serves := e.Conditions.Serving != nil && *e.Conditions.Serving
			switch {
			case isReady:
				note(ready, *e.NodeName, e.Addresses[0])
			case serves:
				note(draining, *e.NodeName, e.Addresses[0])
			}
		}
	}
	out := map[string]int32{}
	for node, addrs := range draining {
		out[node] = int32(len(addrs))
	}
	for node, addrs := range ready {
		out[node] = int32(len(addrs))
	}
	return out
}

func note(m map[string]map[string]bool, node, addr string) {
	if m[node] == nil {
		m[node] = map[string]bool{}
	}
	m[node][addr] = true
}

func takesTraffic(n *corev1.Node) bool {
	if n.DeletionTimestamp != nil || n.Labels[simulatedLabel] == "true" {
		return false
	}
	if _, excluded := n.Labels[excludeLabel]; excluded {
		return false
	}
	for _, t := range n.Spec.Taints {
		if t.Key == toBeDeleted {
			return false
		}
	}
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

func internalIP(n *corev1.Node) (netip.Addr, bool) {
	for _, a := range n.Status.Addresses {
		if addr, err := netip.ParseAddr(a.Address); a.Type == corev1.NodeInternalIP && err == nil && addr.Is4() {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

// ingress returns the status for addresses.
func ingress(addrs []netip.Addr) []corev1.LoadBalancerIngress {
	mode := corev1.LoadBalancerIPModeVIP
	var out []corev1.LoadBalancerIngress
	for _, a := range addrs {
		out = append(out, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &mode})
	}
	return out
}

func sameIngress(a, b []corev1.LoadBalancerIngress) bool {
	return slices.EqualFunc(a, b, func(x, y corev1.LoadBalancerIngress) bool {
		return x.IP == y.IP && x.Hostname == y.Hostname && (x.IPMode == nil) == (y.IPMode == nil) && (x.IPMode == nil || *x.IPMode == *y.IPMode)
	})
}

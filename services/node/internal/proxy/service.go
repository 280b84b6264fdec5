package proxy

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// sourceRangesAnnotation is the older form of spec.loadBalancerSourceRanges.
const sourceRangesAnnotation = corev1.AnnotationLoadBalancerSourceRangesKey

// clusterIPOf returns the Service's IPv4 ClusterIP, and whether it has one.
func clusterIPOf(svc *corev1.Service) (netip.Addr, bool) {
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return netip.Addr{}, false
	}
	for _, s := range append([]string{svc.Spec.ClusterIP}, svc.Spec.ClusterIPs...) {
		if addr, err := netip.ParseAddr(s); err == nil && addr.Is4() {
			return addr, true
		}
	}
	return netip.Addr{}, false
}

func externalAddresses(svc *corev1.Service) []netip.Addr {
	return parseAddresses(svc.Spec.ExternalIPs)
}

// loadBalancerAddresses returns the ingress addresses that nodes serve. Traffic to an
// address with ipMode Proxy is delivered to a NodePort by the load balancer (KEP-1860).
func loadBalancerAddresses(svc *corev1.Service) []netip.Addr {
	if svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return nil
	}
	var list []string
	for _, in := range svc.Status.LoadBalancer.Ingress {
		if in.IPMode == nil || *in.IPMode == corev1.LoadBalancerIPModeVIP {
			list = append(list, in.IP)
		}
	}
	return parseAddresses(list)
}

func parseAddresses(list []string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		addr, err := netip.ParseAddr(s)
		if err == nil && addr.Is4() && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// sourceRanges returns the ranges that may use the load balancer's addresses, and whether
// there is a restriction.
func sourceRanges(svc *corev1.Service) ([]netip.Prefix, bool) {
	list := svc.Spec.LoadBalancerSourceRanges
	if len(list) == 0 {
		if s := strings.TrimSpace(svc.Annotations[sourceRangesAnnotation]); s != "" {
			list = strings.Split(s, ",")
		}
	}
	var out []netip.Prefix
	for _, s := range list {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil || !p.Addr().Is4() {
			continue
		}
		if p.Bits() == 0 {
			return nil, false
		}
		out = append(out, p.Masked())
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(out), len(out) > 0
}

// affinityOf returns how long a client stays with its endpoint, and whether it does.
func affinityOf(svc *corev1.Service) (time.Duration, bool) {
	if svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0, false
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := svc.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return time.Duration(seconds) * time.Second, true
}

func needsHealthCheck(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer &&
		svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal &&
		svc.Spec.HealthCheckNodePort > 0
}

package core

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/apiserver/internal/kind/row"
	"keelson.dev/services/apiserver/internal/resource"
)

// Service returns the row of services. Addresses and node ports are allocated between preparation
// and validation; the functions below report which of them a service needs.
func Service() *resource.Kind {
	k := row.Namespaced[corev1.Service, corev1.ServiceList](corev1.SchemeGroupVersion, "services", "services/specs")
	k.ReturnsDeleted = true
	k.ShortNames = []string{"svc"}
	k.Categories = []string{"all"}
	k.NoGeneration = true
	k.Columns, k.Cells = serviceColumns(), serviceCells
	k.Fields = map[string]func(resource.Object) string{
		"spec.clusterIP": func(o resource.Object) string { return o.(*corev1.Service).Spec.ClusterIP },
		"spec.type":      func(o resource.Object) string { return string(o.(*corev1.Service).Spec.Type) },
	}
	k.Rules = resource.Typed[*corev1.Service]{
		Default:        defaultService,
		PrepareCreate:  prepareService,
		PrepareUpdate:  prepareServiceUpdate,
		ValidateName:   validation.NameIsDNSLabel,
		Warnings:       func(s, _ *corev1.Service) []string { return serviceWarnings(s) },
		Validate:       validateService,
		ValidateUpdate: validateServiceUpdate,
		CreateOnUpdate: true,
	}.Rules()
	k.Subresources = map[string]*resource.Subresource{
		"status": row.View(resource.Typed[*corev1.Service]{
			Default:        defaultService,
			PrepareUpdate:  func(s, old *corev1.Service) { s.Spec = old.Spec },
			ValidateUpdate: validateServiceStatus,
		}.Rules()),
		"proxy": row.Connect(corev1.SchemeGroupVersion.WithKind("ServiceProxyOptions"), resource.Proxy, "create", "delete", "get", "patch", "update"),
	}
	return k
}

// NeedsClusterIP reports whether a service has a cluster IP: it is neither of type ExternalName
// nor headless.
func NeedsClusterIP(s *corev1.Service) bool {
	return s.Spec.Type != corev1.ServiceTypeExternalName && s.Spec.ClusterIP != corev1.ClusterIPNone
}

// NeedsNodePorts reports whether every port of a service gets a node port.
func NeedsNodePorts(s *corev1.Service) bool {
	switch s.Spec.Type {
	case corev1.ServiceTypeNodePort:
		return true
	case corev1.ServiceTypeLoadBalancer:
		a := s.Spec.AllocateLoadBalancerNodePorts
		return a == nil || *a
	}
	return false
}

// NeedsHealthCheckNodePort reports whether a service's load balancer checks nodes for endpoints.
func NeedsHealthCheckNodePort(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeLoadBalancer && s.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// reachedFromOutside reports whether externalTrafficPolicy has an effect on a service.
func reachedFromOutside(s *corev1.Service) bool {
	return s.Spec.Type == corev1.ServiceTypeNodePort || s.Spec.Type == corev1.ServiceTypeLoadBalancer ||
		s.Spec.Type == corev1.ServiceTypeClusterIP && len(s.Spec.ExternalIPs) > 0
}

// clientIPSeconds is the default of ClientIP session affinity: three hours.
const clientIPSeconds = corev1.DefaultClientIPServiceAffinitySeconds

func defaultService(s *corev1.Service) {
	spec := &s.Spec
	if spec.Type == "" {
		spec.Type = corev1.ServiceTypeClusterIP
	}
	if spec.SessionAffinity == "" {
		spec.SessionAffinity = corev1.ServiceAffinityNone
	}
	switch spec.SessionAffinity {
	case corev1.ServiceAffinityNone:
		spec.SessionAffinityConfig = nil
	case corev1.ServiceAffinityClientIP:
		if c := spec.SessionAffinityConfig; c == nil || c.ClientIP == nil || c.ClientIP.TimeoutSeconds == nil {
			seconds := clientIPSeconds
			spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &seconds}}
		}
	}
	for i := range spec.Ports {
		port := &spec.Ports[i]
		if port.Protocol == "" {
			port.Protocol = corev1.ProtocolTCP
		}
		if port.TargetPort == intstr.FromInt32(0) || port.TargetPort == intstr.FromString("") {
			port.TargetPort = intstr.FromInt32(port.Port)
		}
	}
	if spec.ExternalTrafficPolicy == "" && reachedFromOutside(s) {
		spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
	}
	if spec.InternalTrafficPolicy == nil && spec.Type != corev1.ServiceTypeExternalName {
		policy := corev1.ServiceInternalTrafficPolicyCluster
		spec.InternalTrafficPolicy = &policy
	}
	if spec.AllocateLoadBalancerNodePorts == nil && spec.Type == corev1.ServiceTypeLoadBalancer {
		allocate := true
		spec.AllocateLoadBalancerNodePorts = &allocate
	}
	for i := range s.Status.LoadBalancer.Ingress {
		ingress := &s.Status.LoadBalancer.Ingress[i]
		if spec.Type == corev1.ServiceTypeLoadBalancer && ingress.IP != "" && ingress.IPMode == nil {
			mode := corev1.LoadBalancerIPModeVIP
			ingress.IPMode = &mode
		}
	}
}

func prepareService(s *corev1.Service) {
	s.Status = corev1.ServiceStatus{}
	pairClusterIPs(s, nil)
	defaultFamilies(s)
}

// defaultFamilies sets the family to IPv4, the only one of Keelson's network.
func defaultFamilies(s *corev1.Service) {
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		switch p := s.Spec.InternalTrafficPolicy; {
		case p == nil:
		case *p == corev1.ServiceInternalTrafficPolicyCluster, *p == corev1.ServiceInternalTrafficPolicyLocal:
			s.Spec.InternalTrafficPolicy = nil // nothing is routed
		}
		return
	}
	policy := corev1.IPFamilyPolicySingleStack
	if placeless(&s.Spec) && len(s.Spec.IPFamilies) == 0 && s.Spec.IPFamilyPolicy == nil {
		// The client that creates the endpoints chooses their families.
		policy = corev1.IPFamilyPolicyRequireDualStack
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	}
	if s.Spec.IPFamilyPolicy == nil {
		s.Spec.IPFamilyPolicy = &policy
	}
	if len(s.Spec.IPFamilies) == 0 {
		s.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	}
}

// placeless reports whether a service is headless and has no selector.
func placeless(s *corev1.ServiceSpec) bool {
	return s.ClusterIP == corev1.ClusterIPNone && len(s.Selector) == 0
}

// pairClusterIPs keeps clusterIP equal to the first of clusterIPs. Clients that know only one of
// the fields change only that one.
func pairClusterIPs(s, old *corev1.Service) {
	spec := &s.Spec
	if old == nil {
		if len(spec.ClusterIPs) == 0 && spec.ClusterIP != "" {
			spec.ClusterIPs = []string{spec.ClusterIP}
		}
		return
	}
	if spec.ClusterIP == old.Spec.ClusterIP || !equalStrings(spec.ClusterIPs, old.Spec.ClusterIPs) {
		return
	}
	if spec.ClusterIP == "" {
		spec.ClusterIPs = nil
	} else {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
}

func equalStrings(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func prepareServiceUpdate(s, old *corev1.Service) {
	s.Status = old.Status
	keepAllocated(s, old)
	pairClusterIPs(s, old)
	dropForType(s, old)
	defaultFamilies(s)
}

// keepAllocated keeps allocated fields that an update omits: a client that applies the service's
// original manifest again does not mean to release its addresses.
func keepAllocated(s, old *corev1.Service) {
	spec, was := &s.Spec, &old.Spec
	if was.Type == corev1.ServiceTypeExternalName || spec.Type == corev1.ServiceTypeExternalName {
		return
	}
	// Independently of each other: a patch may clear one of them, and clients that know only
	// clusterIP send it without clusterIPs.
	if spec.ClusterIP == "" {
		spec.ClusterIP = was.ClusterIP
	}
	if len(spec.ClusterIPs) == 0 {
		spec.ClusterIPs = was.ClusterIPs
	}
	if len(spec.IPFamilies) == 0 {
		spec.IPFamilies = was.IPFamilies
	}
	if spec.IPFamilyPolicy == nil {
		spec.IPFamilyPolicy = was.IPFamilyPolicy
	}
	if NeedsNodePorts(old) && NeedsNodePorts(s) {
		keepNodePorts(spec.Ports, was.Ports)
	}
	if NeedsHealthCheckNodePort(old) && NeedsHealthCheckNodePort(s) && spec.HealthCheckNodePort == 0 {
		spec.HealthCheckNodePort = was.HealthCheckNodePort
	}
}

// keepNodePorts sets missing node ports from the old ports of the same names.
func keepNodePorts(ports, old []corev1.ServicePort) {
	were, taken := map[string]int32{}, map[int32]bool{}
	for _, p := range old {
		were[p.Name] = p.NodePort
	}
	for _, p := range ports {
		taken[p.NodePort] = true
	}
	for i := range ports {
		if n := were[ports[i].Name]; ports[i].NodePort == 0 && !taken[n] {
			ports[i].NodePort = n
		}
	}
}

// dropForType clears fields that only the old type has, unless the client has changed them.
func dropForType(s, old *corev1.Service) {
	spec, was := &s.Spec, &old.Spec
	if spec.Type == corev1.ServiceTypeExternalName && was.Type != corev1.ServiceTypeExternalName {
		if spec.ClusterIP == was.ClusterIP {
			spec.ClusterIP, spec.ClusterIPs = "", nil
		}
		if equalFamilies(spec.IPFamilies, was.IPFamilies) {
			spec.IPFamilies = nil
		}
		if spec.IPFamilyPolicy != nil && was.IPFamilyPolicy != nil && *spec.IPFamilyPolicy == *was.IPFamilyPolicy {
			spec.IPFamilyPolicy = nil
		}
	}
	if NeedsNodePorts(old) && spec.Type != corev1.ServiceTypeNodePort && spec.Type != corev1.ServiceTypeLoadBalancer &&
		samePorts(spec.Ports, was.Ports) {
		for i := range spec.Ports {
			spec.Ports[i].NodePort = 0
		}
	}
	if NeedsHealthCheckNodePort(old) && !NeedsHealthCheckNodePort(s) && spec.HealthCheckNodePort == was.HealthCheckNodePort {
		spec.HealthCheckNodePort = 0
	}
	if was.Type == corev1.ServiceTypeLoadBalancer && spec.Type != corev1.ServiceTypeLoadBalancer {
		if sameBool(spec.AllocateLoadBalancerNodePorts, was.AllocateLoadBalancerNodePorts) {
			spec.AllocateLoadBalancerNodePorts = nil
		}
		if spec.LoadBalancerClass != nil && was.LoadBalancerClass != nil && *spec.LoadBalancerClass == *was.LoadBalancerClass {
			spec.LoadBalancerClass = nil
		}
		s.Status.LoadBalancer = corev1.LoadBalancerStatus{}
	}
	if reachedFromOutside(old) && !reachedFromOutside(s) && spec.ExternalTrafficPolicy == was.ExternalTrafficPolicy {
		spec.ExternalTrafficPolicy = ""
	}
}

func equalFamilies(a, b []corev1.IPFamily) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func samePorts(ports, old []corev1.ServicePort) bool {
	were := map[int32]bool{}
	for _, p := range old {
		were[p.NodePort] = true
	}
	for _, p := range ports {
		if p.NodePort != 0 && !were[p.NodePort] {
			return false
		}
	}
	return true
}

func sameBool(a, b *bool) bool { return a == b || a != nil && b != nil && *a == *b }

// Package backend determines the backends of a Service: the pods, with their addresses,
// ports and readiness. Both endpoint controllers use it. It must never look at anything
// but the objects it is given.
package backend

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"keelson.dev/services/controller-manager/internal/podstate"
)

// Pod is a pod behind a service.
type Pod struct {
	*corev1.Pod

	// Address is the pod's address of the requested family.
	Address string
	// Ready is true if the pod takes new traffic. Serving is true if it would, were it
	// not Terminating.
	Ready, Serving, Terminating bool
	// Hostname is the pod's own host name if the service gives it a DNS name.
	Hostname string
}

// Pods returns the pods of a service that have an address of the family, in order of
// their addresses. Finished pods are left out.
func Pods(svc *corev1.Service, pods []*corev1.Pod, family corev1.IPFamily) []Pod {
	var out []Pod
	for _, p := range pods {
		if podstate.Finished(p) {
			continue
		}
		address := addressOf(p, family)
		if address == "" {
			continue
		}
		b := Pod{Pod: p, Address: address, Serving: podstate.Ready(p), Terminating: p.DeletionTimestamp != nil}
		b.Ready = svc.Spec.PublishNotReadyAddresses || b.Serving && !b.Terminating
		if p.Spec.Hostname != "" && p.Spec.Subdomain == svc.Name {
			b.Hostname = p.Spec.Hostname
		}
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b Pod) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func addressOf(p *corev1.Pod, family corev1.IPFamily) string {
	for _, ip := range p.Status.PodIPs {
		if FamilyOf(ip.IP) == family {
			return ip.IP
		}
	}
	if FamilyOf(p.Status.PodIP) == family {
		return p.Status.PodIP
	}
	return ""
}

// FamilyOf returns the family of an address, or "" if it is not an address.
func FamilyOf(address string) corev1.IPFamily {
	a, err := netip.ParseAddr(address)
	switch {
	case err != nil:
		return ""
	case a.Unmap().Is4():
		return corev1.IPv4Protocol
	}
	return corev1.IPv6Protocol
}

// Families returns the address families of a service's endpoints. If the server has not
// set them (an object from elsewhere), the family of the cluster IP is used, or else
// IPv4.
func Families(svc *corev1.Service) []corev1.IPFamily {
	if len(svc.Spec.IPFamilies) > 0 {
		return svc.Spec.IPFamilies
	}
	if f := FamilyOf(svc.Spec.ClusterIP); f != "" {
		return []corev1.IPFamily{f}
	}
	return []corev1.IPFamily{corev1.IPv4Protocol}
}

// Headless reports whether a service has no cluster IP.
func Headless(svc *corev1.Service) bool { return svc.Spec.ClusterIP == corev1.ClusterIPNone }

// Port is a port of a service with its value for a particular pod.
type Port struct {
	Name        string
	Protocol    corev1.Protocol
	Port        int32
	AppProtocol string
}

// Ports returns a pod's ports for a service, sorted. A named target port that the pod
// does not have is left out.
func Ports(svc *corev1.Service, p *corev1.Pod) []Port {
	out := make([]Port, 0, len(svc.Spec.Ports))
	for i := range svc.Spec.Ports {
		sp := &svc.Spec.Ports[i]
		number, ok := target(sp, p)
		if !ok {
			continue
		}
		port := Port{Name: sp.Name, Protocol: sp.Protocol, Port: number}
		if port.Protocol == "" {
			port.Protocol = corev1.ProtocolTCP
		}
		if sp.AppProtocol != nil {
			port.AppProtocol = *sp.AppProtocol
		}
		out = append(out, port)
	}
	slices.SortFunc(out, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), cmp.Compare(a.AppProtocol, b.AppProtocol))
	})
	return out
}

func target(sp *corev1.ServicePort, p *corev1.Pod) (int32, bool) {
	if sp.TargetPort.Type == intstr.Int {
		if sp.TargetPort.IntVal == 0 {
			return sp.Port, true
		}
		return sp.TargetPort.IntVal, true
	}
	protocol := cmp.Or(sp.Protocol, corev1.ProtocolTCP)
	for _, containers := range [][]corev1.Container{p.Spec.Containers, sidecars(p)} {
		for i := range containers {
			for _, cp := range containers[i].Ports {
				if cp.Name == sp.TargetPort.StrVal && cmp.Or(cp.Protocol, corev1.ProtocolTCP) == protocol {
					return cp.ContainerPort, true
				}
			}
		}
	}
	return 0, false
}

// sidecars returns the init containers that keep running.
func sidecars(p *corev1.Pod) []corev1.Container {
	var out []corev1.Container
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			out = append(out, c)
		}
	}
	return out
}

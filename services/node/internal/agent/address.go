package agent

import (
	"net/netip"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// addresses maps addresses to the pods of this node that have them.
type addresses struct {
	mu sync.RWMutex
	at map[netip.Addr]addressee
}

type addressee struct {
	uid       types.UID
	namespace string
}

// update records a pod's current addresses. gone is true if the pod no longer exists.
func (a *addresses) update(p, old *corev1.Pod, gone bool) {
	if p.Spec.HostNetwork {
		return // its address is the node's own
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at == nil {
		a.at = map[netip.Addr]addressee{}
	}
	for _, was := range []*corev1.Pod{old, p} {
		if was == nil {
			continue
		}
		for _, ip := range was.Status.PodIPs {
			if addr, err := netip.ParseAddr(ip.IP); err == nil && a.at[addr].uid == p.UID {
				delete(a.at, addr)
			}
		}
	}
	if gone || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return
	}
	for _, ip := range p.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			a.at[addr] = addressee{p.UID, p.Namespace}
		}
	}
}

// NamespaceAt returns the namespace of this node's pod with the given address, or "".
func (a *Agent) NamespaceAt(addr netip.Addr) string {
	a.addresses.mu.RLock()
	defer a.addresses.mu.RUnlock()
	return a.addresses.at[addr].namespace
}

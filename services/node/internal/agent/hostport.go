package agent

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cni"
	"keelson.dev/services/node/internal/cri"
	"keelson.dev/services/node/internal/pod"
)

// hostPorts passes the pod's host ports to the pod network.
func (w *worker) hostPorts(p *corev1.Pod, state *cri.Pod) {
	if w.a.cfg.HostPorts == nil || p.Spec.HostNetwork {
		return
	}
	box := state.Sandbox()
	if box == nil || !box.Ready || len(box.IPs) == 0 {
		w.a.cfg.HostPorts(string(w.uid), nil)
		return
	}
	w.a.cfg.HostPorts(string(w.uid), hostPortsOf(p, box.IPs[0]))
}

// runningHostPorts returns the host ports of the pods that have a ready sandbox, by pod UID,
// with the addresses that their statuses report.
func runningHostPorts(pods []*corev1.Pod, seen map[string]cri.Seen) map[string][]cni.HostPort {
	ready := map[types.UID]bool{}
	for _, s := range seen {
		if s.Sandbox && s.State == int32(runtimev1.PodSandboxState_SANDBOX_READY) {
			ready[types.UID(s.PodUID)] = true
		}
	}
	out := map[string][]cni.HostPort{}
	for _, p := range pods {
		if !ready[p.UID] || p.Spec.HostNetwork || pod.Terminal(p) {
			continue
		}
		if ports := hostPortsOf(p, p.Status.PodIP); len(ports) > 0 {
			out[string(p.UID)] = ports
		}
	}
	return out
}

func hostPortsOf(p *corev1.Pod, ip string) []cni.HostPort {
	target, err := netip.ParseAddr(ip)
	if err != nil {
		return nil
	}
	var out []cni.HostPort
	for role, c := range pod.Containers(p) {
		if role == pod.Init {
			continue
		}
		for _, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			h := cni.HostPort{
				Protocol: string(port.Protocol), HostPort: uint16(port.HostPort),
				Target: netip.AddrPortFrom(target, uint16(port.ContainerPort)),
			}
			if addr, err := netip.ParseAddr(port.HostIP); err == nil && !addr.IsUnspecified() {
				h.HostIP = addr
			}
			out = append(out, h)
		}
	}
	return out
}

package pod

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Refusal is why a node does not run a pod that was bound to it. The pod never had a
// container there.
type Refusal struct{ Reason, Message string }

// safeSysctls are the sysctls that a pod may set without affecting other pods on its node.
var safeSysctls = map[string]bool{
	"kernel.shm_rmid_forced":              true,
	"net.ipv4.ip_local_port_range":        true,
	"net.ipv4.tcp_syncookies":             true,
	"net.ipv4.ping_group_range":           true,
	"net.ipv4.ip_unprivileged_port_start": true,
	"net.ipv4.ip_local_reserved_ports":    true,
	"net.ipv4.tcp_keepalive_time":         true,
	"net.ipv4.tcp_fin_timeout":            true,
	"net.ipv4.tcp_keepalive_intvl":        true,
	"net.ipv4.tcp_keepalive_probes":       true,
	"net.ipv4.tcp_rmem":                   true,
	"net.ipv4.tcp_wmem":                   true,
}

// Admit returns why a node refuses a pod, or nil if it accepts it. The scheduler makes the
// same checks, but a pod can be bound without the scheduler. others are the pods that the
// node has admitted and that have not ended. node may be nil while it is unknown.
func Admit(p *corev1.Pod, node *corev1.Node, others []*corev1.Pod) *Refusal {
	if p.Spec.OS != nil && p.Spec.OS.Name != corev1.Linux {
		return &Refusal{"PodOSNotSupported", "Pod was rejected: Failed to admit pod as the OS field doesn't match node OS"}
	}
	if r := admitSysctls(p); r != nil {
		return r
	}
	if node == nil {
		return nil
	}
	if os, ok := p.Spec.NodeSelector[corev1.LabelOSStable]; ok && os != node.Labels[corev1.LabelOSStable] {
		return &Refusal{"PodOSSelectorNodeLabelDoesNotMatch", "Pod was rejected: Failed to admit pod as the `kubernetes.io/os` label doesn't match node label"}
	}
	if ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(node); err != nil || !ok {
		return &Refusal{"NodeAffinity", "Pod was rejected: Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"}
	}
	for i := range node.Spec.Taints {
		if t := &node.Spec.Taints[i]; t.Effect == corev1.TaintEffectNoExecute && !Tolerates(p, t) {
			return &Refusal{"TaintToleration", fmt.Sprintf("Pod was rejected: Predicate TaintToleration failed: node(s) had untolerated taint {%s: %s}", t.Key, t.Value)}
		}
	}
	for _, o := range others {
		if portsClash(p, o) {
			return &Refusal{"NodePorts", "Pod was rejected: Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"}
		}
	}
	if IsStatic(p) {
		return nil // it runs even if the node is full
	}
	return admitResources(p, node.Status.Allocatable, others)
}

func admitSysctls(p *corev1.Pod) *Refusal {
	if p.Spec.SecurityContext == nil {
		return nil
	}
	for _, sysctl := range p.Spec.SecurityContext.Sysctls {
		name := strings.ReplaceAll(sysctl.Name, "/", ".")
		var why string
		switch {
		case !safeSysctls[name]:
			why = "not allowlisted"
		case strings.HasPrefix(name, "net.") && p.Spec.HostNetwork:
			why = "not allowed with host net enabled"
		case strings.HasPrefix(name, "kernel.shm") && p.Spec.HostIPC:
			why = "not allowed with host ipc enabled"
		default:
			continue
		}
		return &Refusal{"SysctlForbidden", fmt.Sprintf("Pod was rejected: forbidden sysctl: %q %s", name, why)}
	}
	return nil
}

// Tolerates reports whether a pod tolerates a taint.
func Tolerates(p *corev1.Pod, t *corev1.Taint) bool {
	for i := range p.Spec.Tolerations {
		o := &p.Spec.Tolerations[i]
		if o.Effect != "" && o.Effect != t.Effect || o.Key != "" && o.Key != t.Key {
			continue
		}
		if o.Operator == corev1.TolerationOpExists || o.Key != "" && o.Value == t.Value && (o.Operator == "" || o.Operator == corev1.TolerationOpEqual) {
			return true
		}
	}
	return false
}

// hostPort is a port of the node that a pod uses.
type hostPort struct {
	protocol corev1.Protocol
	ip       string
	port     int32
}

func hostPorts(p *corev1.Pod) []hostPort {
	var out []hostPort
	for role, c := range Containers(p) {
		if role == Init {
			continue
		}
		for _, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			h := hostPort{port.Protocol, port.HostIP, port.HostPort}
			if h.protocol == "" {
				h.protocol = corev1.ProtocolTCP
			}
			if h.ip == "0.0.0.0" || h.ip == "::" {
				h.ip = ""
			}
			out = append(out, h)
		}
	}
	return out
}

func portsClash(a, b *corev1.Pod) bool {
	mine := hostPorts(a)
	if len(mine) == 0 {
		return false
	}
	for _, x := range mine {
		for _, y := range hostPorts(b) {
			if x.port == y.port && x.protocol == y.protocol && (x.ip == y.ip || x.ip == "" || y.ip == "") {
				return true
			}
		}
	}
	return false
}

func admitResources(p *corev1.Pod, allocatable corev1.ResourceList, others []*corev1.Pod) *Refusal {
	if s := short(p, allocatable, others); s != nil {
		return &Refusal{"OutOf" + string(s.name), "Pod was rejected: " + s.String()}
	}
	return nil
}

// shortage is a resource of which a node has less than a pod needs: thousandths of a CPU,
// bytes, or pods.
type shortage struct {
	name                      corev1.ResourceName
	requested, used, capacity int64
}

func (s *shortage) String() string {
	return fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", s.name, s.requested, s.used, s.capacity)
}

// diskRequest returns how much of the node's disk a pod requests, in bytes.
func diskRequest(p *corev1.Pod) int64 {
	requests := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
	return requests.StorageEphemeral().Value()
}

// short returns the first resource that a node has too little of for a pod besides others,
// or nil.
func short(p *corev1.Pod, allocatable corev1.ResourceList, others []*corev1.Pod) *shortage {
	want := PodTotal(p)
	used := map[corev1.ResourceName]int64{corev1.ResourcePods: int64(len(others))}
	for _, o := range others {
		t := PodTotal(o)
		used[corev1.ResourceCPU] += t.Requests.Cpu().MilliValue()
		used[corev1.ResourceMemory] += t.Requests.Memory().Value()
	}
	disk := diskRequest(p)
	if disk > 0 {
		for _, o := range others {
			used[corev1.ResourceEphemeralStorage] += diskRequest(o)
		}
	}
	for _, s := range []shortage{
		{name: corev1.ResourcePods, requested: 1, capacity: allocatable.Pods().Value()},
		{name: corev1.ResourceCPU, requested: want.Requests.Cpu().MilliValue(), capacity: allocatable.Cpu().MilliValue()},
		{name: corev1.ResourceMemory, requested: want.Requests.Memory().Value(), capacity: allocatable.Memory().Value()},
		{name: corev1.ResourceEphemeralStorage, requested: disk, capacity: allocatable.StorageEphemeral().Value()},
	} {
		if _, known := allocatable[s.name]; !known || s.requested == 0 {
			continue
		}
		if s.used = used[s.name]; s.used+s.requested > s.capacity {
			return &s
		}
	}
	return nil
}

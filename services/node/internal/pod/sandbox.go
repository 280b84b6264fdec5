package pod

import (
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/cri"
)

// Settings are the node's contribution to a pod's configuration; the rest comes from the
// pod's spec.
type Settings struct {
	// LogDir holds one directory per pod for its logs.
	LogDir string
	// SeccompDir holds the profiles that localhostProfile refers to.
	SeccompDir string
	Resolver   Resolver
	// MemoryCapacity is the node's memory in bytes.
	MemoryCapacity int64
	// Unified is true if the node has cgroup v2.
	Unified bool
}

// LogDirectory returns the directory of a pod's logs.
func (s Settings) LogDirectory(p *corev1.Pod) string {
	return filepath.Join(s.LogDir, LogFolder(p))
}

// LogFolder returns the name of the directory of a pod's logs.
func LogFolder(p *corev1.Pod) string { return p.Namespace + "_" + p.Name + "_" + string(p.UID) }

// LogName returns the path of an instance's log relative to its pod's log directory.
func LogName(container string, restartCount int) string {
	return filepath.Join(container, strconv.Itoa(restartCount)+".log")
}

func podLabels(p *corev1.Pod) map[string]string {
	labels := map[string]string{}
	for k, v := range p.Labels {
		labels[k] = v
	}
	labels[cri.LabelPodName] = p.Name
	labels[cri.LabelPodNamespace] = p.Namespace
	labels[cri.LabelPodUID] = string(p.UID)
	return labels
}

// SandboxConfig returns the CRI configuration of a pod's sandbox.
func SandboxConfig(p *corev1.Pod, s Settings, attempt uint32, cgroupParent string) *runtimev1.PodSandboxConfig {
	host, domain := Hostname(p, s.Resolver.ClusterDomain)
	if p.Spec.SetHostnameAsFQDN != nil && *p.Spec.SetHostnameAsFQDN && domain != "" {
		host += "." + domain
	}
	config := &runtimev1.PodSandboxConfig{
		Metadata:     &runtimev1.PodSandboxMetadata{Name: p.Name, Namespace: p.Namespace, Uid: string(p.UID), Attempt: attempt},
		LogDirectory: s.LogDirectory(p),
		DnsConfig:    s.Resolver.DNS(p),
		Labels:       podLabels(p),
		Annotations:  map[string]string{},
		Linux:        &runtimev1.LinuxPodSandboxConfig{CgroupParent: cgroupParent, Sysctls: map[string]string{}},
	}
	if !p.Spec.HostNetwork {
		config.Hostname = host
	}
	sc := &runtimev1.LinuxSandboxSecurityContext{
		NamespaceOptions: namespaces(p),
		Privileged:       privileged(p),
		Seccomp:          &runtimev1.SecurityProfile{ProfileType: runtimev1.SecurityProfile_RuntimeDefault},
	}
	if psc := p.Spec.SecurityContext; psc != nil {
		for _, sysctl := range psc.Sysctls {
			config.Linux.Sysctls[strings.ReplaceAll(sysctl.Name, "/", ".")] = sysctl.Value
		}
		if psc.RunAsUser != nil {
			sc.RunAsUser = &runtimev1.Int64Value{Value: *psc.RunAsUser}
			if psc.RunAsGroup != nil {
				sc.RunAsGroup = &runtimev1.Int64Value{Value: *psc.RunAsGroup}
			}
		}
		if psc.FSGroup != nil {
			sc.SupplementalGroups = append(sc.SupplementalGroups, *psc.FSGroup)
		}
		sc.SupplementalGroups = append(sc.SupplementalGroups, psc.SupplementalGroups...)
	}
	config.Linux.SecurityContext = sc
	config.Linux.Resources = cgroupResources(containersTotal(p))
	config.Linux.Overhead = &runtimev1.LinuxContainerResources{}
	if o := p.Spec.Overhead; len(o) > 0 {
		config.Linux.Overhead = cgroupResources(Total{Requests: o, Limits: o})
	}
	for role, c := range Containers(p) {
		if role != Init {
			config.PortMappings = append(config.PortMappings, portMappings(p, c)...)
		}
	}
	return config
}

func portMappings(p *corev1.Pod, c *corev1.Container) []*runtimev1.PortMapping {
	if p.Spec.HostNetwork {
		return nil
	}
	var out []*runtimev1.PortMapping
	for _, port := range c.Ports {
		if port.HostPort == 0 {
			continue
		}
		m := &runtimev1.PortMapping{ContainerPort: port.ContainerPort, HostPort: port.HostPort, HostIp: port.HostIP}
		switch port.Protocol {
		case corev1.ProtocolUDP:
			m.Protocol = runtimev1.Protocol_UDP
		case corev1.ProtocolSCTP:
			m.Protocol = runtimev1.Protocol_SCTP
		}
		out = append(out, m)
	}
	return out
}

func namespaces(p *corev1.Pod) *runtimev1.NamespaceOption {
	o := &runtimev1.NamespaceOption{Pid: runtimev1.NamespaceMode_CONTAINER}
	if p.Spec.HostNetwork {
		o.Network = runtimev1.NamespaceMode_NODE
	}
	if p.Spec.HostIPC {
		o.Ipc = runtimev1.NamespaceMode_NODE
	}
	switch {
	case p.Spec.HostPID:
		o.Pid = runtimev1.NamespaceMode_NODE
	case isTrue(p.Spec.ShareProcessNamespace):
		o.Pid = runtimev1.NamespaceMode_POD
	}
	return o
}

func privileged(p *corev1.Pod) bool {
	for _, c := range Containers(p) {
		if sc := c.SecurityContext; sc != nil && isTrue(sc.Privileged) {
			return true
		}
	}
	return false
}

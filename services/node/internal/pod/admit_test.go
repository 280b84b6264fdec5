package pod

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestAdmit(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "node", Labels: map[string]string{"disk": "fast"}}}
	node.Status.Allocatable = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourcePods: resource.MustParse("3"), corev1.ResourceEphemeralStorage: resource.MustParse("10Gi")}
	tainted := node.DeepCopy()
	tainted.Spec.Taints = []corev1.Taint{{Key: "k", Value: "v", Effect: corev1.TaintEffectNoExecute}, {Key: "soft", Effect: corev1.TaintEffectNoSchedule}}
	using := func(cpu string) *corev1.Pod {
		return podOf([]corev1.ResourceRequirements{need(list(cpu, ""), nil)}, nil, 0)
	}
	port := func(ip string, n int32, protocol corev1.Protocol) *corev1.Pod {
		p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{HostPort: n, HostIP: ip, Protocol: protocol}}}}}}
		return p
	}
	storing := func(size string) *corev1.Pod {
		return podOf([]corev1.ResourceRequirements{need(corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse(size)}, nil)}, nil, 0)
	}
	with := func(change func(*corev1.PodSpec)) *corev1.Pod {
		p := using("100m")
		change(&p.Spec)
		return p
	}
	sysctl := func(name string) func(*corev1.PodSpec) {
		return func(s *corev1.PodSpec) {
			s.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: name, Value: "1"}}}
		}
	}
	for name, c := range map[string]struct {
		pod    *corev1.Pod
		node   *corev1.Node
		others []*corev1.Pod
		reason string
	}{
		"Windows":          {pod: with(func(s *corev1.PodSpec) { s.OS = &corev1.PodOS{Name: corev1.Windows} }), reason: "PodOSNotSupported"},
		"selects Windows":  {pod: with(func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{corev1.LabelOSStable: "windows"} }), node: node, reason: "PodOSSelectorNodeLabelDoesNotMatch"},
		"Linux":            {pod: with(func(s *corev1.PodSpec) { s.OS = &corev1.PodOS{Name: corev1.Linux} }), node: node},
		"fits":             {using("500m"), node, []*corev1.Pod{using("500m")}, ""},
		"no CPU left":      {using("501m"), node, []*corev1.Pod{using("500m")}, "OutOfcpu"},
		"no memory":        {podOf([]corev1.ResourceRequirements{need(list("", "2Gi"), nil)}, nil, 0), node, nil, "OutOfmemory"},
		"disk is left":     {storing("4Gi"), node, []*corev1.Pod{storing("6Gi")}, ""},
		"no disk left":     {storing("4Gi"), node, []*corev1.Pod{storing("7Gi")}, "OutOfephemeral-storage"},
		"asks for nothing": {podOf([]corev1.ResourceRequirements{{}}, nil, 0), node, []*corev1.Pod{using("2")}, ""},
		"too many pods":    {podOf([]corev1.ResourceRequirements{{}}, nil, 0), node, []*corev1.Pod{{}, {}, {}}, "OutOfpods"},
		"selector":         {with(func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{"disk": "fast"} }), node, nil, ""},
		"another selector": {with(func(s *corev1.PodSpec) { s.NodeSelector = map[string]string{"disk": "slow"} }), node, nil, "NodeAffinity"},
		"taint":            {using("1m"), tainted, nil, "TaintToleration"},
		"tolerated taint": {with(func(s *corev1.PodSpec) {
			s.Tolerations = []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpEqual, Value: "v", Effect: corev1.TaintEffectNoExecute}}
		}), tainted, nil, ""},
		"tolerates all":            {with(func(s *corev1.PodSpec) { s.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}} }), tainted, nil, ""},
		"port taken":               {port("", 80, ""), node, []*corev1.Pod{port("10.0.0.1", 80, corev1.ProtocolTCP)}, "NodePorts"},
		"port of another address":  {port("10.0.0.2", 80, ""), node, []*corev1.Pod{port("10.0.0.1", 80, "")}, ""},
		"port of another protocol": {port("", 80, corev1.ProtocolUDP), node, []*corev1.Pod{port("", 80, "")}, ""},
		"forbidden sysctl":         {with(sysctl("kernel.msgmax")), nil, nil, "SysctlForbidden"},
		"safe sysctl":              {with(sysctl("net.ipv4.tcp_syncookies")), nil, nil, ""},
		"safe sysctl, slashes":     {with(sysctl("net/ipv4/tcp_syncookies")), nil, nil, ""},
		"host's sysctl": {with(func(s *corev1.PodSpec) {
			sysctl("net.ipv4.tcp_syncookies")(s)
			s.HostNetwork = true
		}), nil, nil, "SysctlForbidden"},
		"unknown node": {using("100"), nil, nil, ""},
	} {
		r := Admit(c.pod, c.node, c.others)
		got := ""
		if r != nil {
			got = r.Reason
			if !strings.HasPrefix(r.Message, "Pod was rejected: ") {
				t.Errorf("%s: %q", name, r.Message)
			}
		}
		if got != c.reason {
			t.Errorf("%s: %q, want %q", name, got, c.reason)
		}
	}
}

package policy

import (
	"maps"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// Pod is the record of a pod: what policies depend on, in a few hundred bytes. It implements
// client.Object, so that a client.Cache of it holds nothing else.
type Pod struct {
	// ObjectMeta has the name, namespace, uid, resourceVersion, creationTimestamp and labels.
	metav1.ObjectMeta
	// Node is the name of the pod's node.
	Node string
	// Addr is the pod's IPv4 address. It is the zero Addr if the pod has none, has ended, or is on
	// the network of its node.
	Addr netip.Addr
	// text is Addr as nft writes it.
	text string
	// Ports are the named ports.
	Ports []NamedPort
}

// NamedPort is a named port of a container.
type NamedPort struct {
	Name     string
	Protocol corev1.Protocol
	Number   uint16
}

// record returns the record of a pod.
func record(p *corev1.Pod) Pod {
	out := Pod{ObjectMeta: metav1.ObjectMeta{
		Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion,
		CreationTimestamp: p.CreationTimestamp, Labels: p.Labels,
	}, Node: p.Spec.NodeName}
	for _, list := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range list {
			for _, port := range list[i].Ports {
				if port.Name != "" {
					out.Ports = append(out.Ports, NamedPort{port.Name, protocolOf(port.Protocol), uint16(port.ContainerPort)}) //nolint:gosec // validated
				}
			}
		}
	}
	if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return out
	}
	if addr, err := netip.ParseAddr(p.Status.PodIP); err == nil && addr.Is4() {
		out.at(addr)
	}
	return out
}

func (p *Pod) at(addr netip.Addr) { p.Addr, p.text = addr, addr.String() }

func protocolOf(p corev1.Protocol) corev1.Protocol {
	if p == "" {
		return corev1.ProtocolTCP
	}
	return p
}

// Unmarshal implements client.Object: it decodes a Pod and keeps the record.
func (p *Pod) Unmarshal(b []byte) error {
	var whole corev1.Pod
	if err := whole.Unmarshal(b); err != nil {
		return err
	}
	*p = record(&whole)
	return nil
}

// Marshal implements client.Object. Records are never written.
func (p *Pod) Marshal() ([]byte, error) {
	return (&corev1.Pod{ObjectMeta: p.ObjectMeta}).Marshal()
}

// GetObjectKind implements runtime.Object.
func (p *Pod) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements runtime.Object.
func (p *Pod) DeepCopyObject() runtime.Object {
	out := *p
	p.DeepCopyInto(&out.ObjectMeta)
	out.Ports = slices.Clone(p.Ports)
	return &out
}

// Same reports whether two states of a pod are equal for policies.
func (p *Pod) Same(o *Pod) bool {
	return p.UID == o.UID && p.Node == o.Node && p.Addr == o.Addr && maps.Equal(p.Labels, o.Labels)
}

// Local is a pod of this node.
type Local struct {
	// Pod has the address that the runtime gave the pod.
	Pod Pod
	// Unknown is true for a pod of the runtime that the API does not have. It is cut off.
	Unknown bool
	// Link is the node's end of the pod's interface. It is found before a plan.
	Link string
	// born is the change with which the pod got this address, and since the one that the rules in
	// force must include.
	born, since uint64
}

// NewLocal returns a pod of this node.
func NewLocal(p *corev1.Pod, addr netip.Addr) Local {
	l := Local{Pod: record(p)}
	l.Pod.at(addr)
	return l
}

// UnknownLocal returns a pod that only the runtime has.
func UnknownLocal(uid types.UID, addr netip.Addr) Local {
	l := Local{Unknown: true, Pod: Pod{ObjectMeta: metav1.ObjectMeta{UID: uid}}}
	l.Pod.at(addr)
	return l
}

// UID returns the pod's uid.
func (l *Local) UID() types.UID { return l.Pod.UID }

func (l *Local) same(o Local) bool { return l.Unknown == o.Unknown && l.Pod.Same(&o.Pod) }

package state

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// Node is a node with its pods.
type Node struct {
	// Index is its place in Cluster.Nodes, as long as it exists.
	Index  int
	Name   string
	Object *corev1.Node
	// Allocatable resources, and the number of pods.
	Allocatable Resources
	AllowedPods int
	// Requested by its pods; ScoreCPU and ScoreMemory as scores count them.
	Requested             Resources
	ScoreCPU, ScoreMemory int64
	Pods                  []*Pod
	// Nominated are pending pods for which pods of the node were preempted. They are not
	// in Pods, and their requests are not in Requested.
	Nominated []*Pod
	// Images on the node and their sizes.
	Images map[string]int64

	ports []Port
}

// PortsFree reports whether no pod on the node has any of the ports.
func (n *Node) PortsFree(want []Port) bool {
	for _, p := range want {
		if slices.ContainsFunc(n.ports, p.conflicts) {
			return false
		}
	}
	return true
}

// set replaces the node object. what is not 0 if the difference matters.
func (n *Node) set(o *corev1.Node) (what NodeChange) {
	old := n.Object
	n.Object = o
	n.Allocatable = resourcesOf(o.Status.Allocatable)
	n.AllowedPods = 0
	if q, ok := o.Status.Allocatable[corev1.ResourcePods]; ok {
		n.AllowedPods = int(q.Value())
	}
	switch {
	case old == nil:
		what = NodeAdded
	default:
		if !maps.Equal(old.Labels, o.Labels) {
			what |= NodeLabels
		}
		if old.Spec.Unschedulable != o.Spec.Unschedulable || !equality.Semantic.DeepEqual(old.Spec.Taints, o.Spec.Taints) {
			what |= NodeTaints
		}
		if !equality.Semantic.DeepEqual(old.Status.Allocatable, o.Status.Allocatable) {
			what |= NodeAllocatable
		}
		if !sameImages(old.Status.Images, o.Status.Images) {
			what |= NodeImages
		}
	}
	if what&(NodeAdded|NodeImages) != 0 {
		n.Images = make(map[string]int64, len(o.Status.Images))
		for _, image := range o.Status.Images {
			for _, name := range image.Names {
				n.Images[name] = image.SizeBytes
			}
		}
	}
	return what
}

func sameImages(a, b []corev1.ContainerImage) bool {
	return slices.EqualFunc(a, b, func(x, y corev1.ContainerImage) bool {
		return x.SizeBytes == y.SizeBytes && slices.Equal(x.Names, y.Names)
	})
}

func (n *Node) add(p *Pod) {
	p.slot = len(n.Pods)
	n.Pods = append(n.Pods, p)
	n.Requested.add(&p.Requests, 1)
	n.ScoreCPU += p.ScoreCPU
	n.ScoreMemory += p.ScoreMemory
	n.ports = append(n.ports, p.Ports...)
}

func (n *Node) remove(p *Pod) {
	last := len(n.Pods) - 1
	n.Pods[p.slot] = n.Pods[last]
	n.Pods[p.slot].slot = p.slot
	n.Pods[last] = nil
	n.Pods = n.Pods[:last]
	n.Requested.add(&p.Requests, -1)
	n.ScoreCPU -= p.ScoreCPU
	n.ScoreMemory -= p.ScoreMemory
	for _, port := range p.Ports {
		if i := slices.Index(n.ports, port); i >= 0 {
			n.ports = slices.Delete(n.ports, i, i+1)
		}
	}
}

// NodeChange is a set of the ways in which a node changed.
type NodeChange uint8

// The ways in which a node changes.
const (
	NodeAdded NodeChange = 1 << iota
	NodeRemoved
	NodeLabels
	NodeTaints // and spec.unschedulable
	NodeAllocatable
	NodeImages
)

// ImageName returns an image's name as nodes report it: with a tag.
func ImageName(name string) string {
	if strings.LastIndex(name, ":") <= strings.LastIndex(name, "/") {
		return name + ":latest"
	}
	return name
}

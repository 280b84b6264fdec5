// Package pod makes the node's decisions about one pod: what to start and what to stop, how
// a container's configuration follows from its spec, and which environment it gets. Every
// function is pure.
//
// It must never call anything: no runtime, no API, no clock, no file.
package pod

import (
	"fmt"
	"hash/fnv"
	"iter"

	corev1 "k8s.io/api/core/v1"
)

// IsSidecar reports whether an init container keeps running alongside the regular
// containers.
func IsSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// Role is what a container is for in its pod.
type Role int

// The roles of containers.
const (
	Regular Role = iota
	// Init is an init container that ends before the next container starts.
	Init
	// Sidecar is an init container that keeps running alongside the regular containers.
	Sidecar
	// Ephemeral is a container that was added to a running pod for debugging.
	Ephemeral
)

// Containers iterates over all containers of a pod: init containers and sidecars, then
// regular containers, then ephemeral containers, each in the order of the spec.
func Containers(p *corev1.Pod) iter.Seq2[Role, *corev1.Container] {
	return func(yield func(Role, *corev1.Container) bool) {
		for i := range p.Spec.InitContainers {
			if !yield(roleOf(&p.Spec.InitContainers[i]), &p.Spec.InitContainers[i]) {
				return
			}
		}
		for i := range p.Spec.Containers {
			if !yield(Regular, &p.Spec.Containers[i]) {
				return
			}
		}
		for i := range p.Spec.EphemeralContainers {
			if !yield(Ephemeral, (*corev1.Container)(&p.Spec.EphemeralContainers[i].EphemeralContainerCommon)) {
				return
			}
		}
	}
}

// roleOf returns the role of an init container.
func roleOf(c *corev1.Container) Role {
	if IsSidecar(c) {
		return Sidecar
	}
	return Init
}

// Find returns the container with the given name and its role, or nil.
func Find(p *corev1.Pod, name string) (*corev1.Container, Role) {
	for role, c := range Containers(p) {
		if c.Name == name {
			return c, role
		}
	}
	return nil, Regular
}

// Status returns the reported status of the container with the given name, or nil.
func Status(p *corev1.Pod, name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// Terminal reports whether a pod has reached a final phase, Succeeded or Failed.
func Terminal(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// Hash identifies the part of a container's spec that may change while its pod runs: the
// image. A container whose hash has changed needs a new instance.
func Hash(c *corev1.Container) string {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s\x00%s", c.Name, c.Image)
	return fmt.Sprintf("%x", h.Sum64())
}

// Key returns a pod's "namespace/name".
func Key(p *corev1.Pod) string { return p.Namespace + "/" + p.Name }

// Package pod makes the node's decisions about one pod: what to start and what to stop, how
// a container's configuration follows from its spec, and which environment it gets. Every
// function is pure.
//
// It must never call anything: no runtime, no API, no clock, no file.
package pod

import (
	"fmt"
	"hash/fnv"

	corev1 "k8s.io/api/core/v1"
)

// IsSidecar reports whether an init container keeps running alongside the regular
// containers.
func IsSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// Find returns the container or init container with the given name, or nil. init is true
// for an init container.
func Find(p *corev1.Pod, name string) (c *corev1.Container, init bool) {
	for i := range p.Spec.Containers {
		if p.Spec.Containers[i].Name == name {
			return &p.Spec.Containers[i], false
		}
	}
	for i := range p.Spec.InitContainers {
		if p.Spec.InitContainers[i].Name == name {
			return &p.Spec.InitContainers[i], true
		}
	}
	return nil, false
}

// Status returns the reported status of the container with the given name, or nil.
func Status(p *corev1.Pod, name string) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
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

// Package pod holds every decision of the node about one pod: what to start and
// what to stop, how a container's configuration follows from its spec, and the
// environment it sees. Everything here is a pure function of its arguments.
//
// It must never call anything: no runtime, no API, no clock, no file.
package pod

import (
	"fmt"
	"hash/fnv"

	corev1 "k8s.io/api/core/v1"
)

// IsSidecar says that an init container keeps running beside the regular ones.
func IsSidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// Find is the container or init container named name.
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

// Status is the reported status of the container named name, or nil.
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

// Terminal says that a pod has reached a phase that it will never leave.
func Terminal(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// Hash tells a container's spec from a later one that needs another instance.
// Only what may change in a running pod counts: the image.
func Hash(c *corev1.Container) string {
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s\x00%s", c.Name, c.Image)
	return fmt.Sprintf("%x", h.Sum64())
}

// Key is "namespace/name".
func Key(p *corev1.Pod) string { return p.Namespace + "/" + p.Name }

package eviction

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"keelson.dev/services/node/internal/pod"
)

// The names of limits of local storage in the metric of evictions, as the kubelet's.
const (
	limitEmptyDir  = "emptydirfs.limit"
	limitPod       = "ephemeralpodfs.limit"
	limitContainer = "ephemeralcontainerfs.limit"
)

// Limited reports whether a pod has a limit of local storage that the node enforces by
// measuring: a volume in memory has a size that the kernel enforces.
func Limited(p *corev1.Pod) bool {
	for i := range p.Spec.Volumes {
		if e := p.Spec.Volumes[i].EmptyDir; e != nil && e.Medium != corev1.StorageMediumMemory && e.SizeLimit != nil && e.SizeLimit.Sign() > 0 {
			return true
		}
	}
	limited := func(c corev1.Container) bool {
		q := c.Resources.Limits[corev1.ResourceEphemeralStorage]
		return !q.IsZero()
	}
	return slices.ContainsFunc(p.Spec.Containers, limited) || slices.ContainsFunc(p.Spec.InitContainers, limited)
}

// Exceeded returns which limit of local storage a pod exceeds, and the message about it, or
// "" if it exceeds none. imageDisk is true if images have a disk of their own; then writable
// layers do not count as a container's usage, as for the kubelet.
func Exceeded(c Candidate, imageDisk bool) (limit, message string) {
	if c.Use == nil {
		return "", ""
	}
	for i := range c.Pod.Spec.Volumes {
		v := &c.Pod.Spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.Medium == corev1.StorageMediumMemory || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.Sign() <= 0 {
			continue
		}
		if c.Use.Volumes[v.Name].Bytes > v.EmptyDir.SizeLimit.Value() {
			return limitEmptyDir, fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String())
		}
	}
	limits := resourcehelper.PodLimits(c.Pod, resourcehelper.PodResourcesOptions{})
	if q, ok := limits[corev1.ResourceEphemeralStorage]; ok && c.Use.disk(NodeFSAvailable, false).Bytes > q.Value() {
		return limitPod, fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", q.String())
	}
	for _, u := range c.Use.Containers {
		spec, role := pod.Find(c.Pod, u.Name)
		if spec == nil || role != pod.Regular && role != pod.Sidecar {
			continue
		}
		used := u.Logs.Bytes
		if !imageDisk {
			used += u.Root.Bytes
		}
		if q := spec.Resources.Limits[corev1.ResourceEphemeralStorage]; !q.IsZero() && used > q.Value() {
			return limitContainer, fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", u.Name, q.String())
		}
	}
	return "", ""
}

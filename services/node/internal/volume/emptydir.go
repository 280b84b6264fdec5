package volume

import (
	"os"

	corev1 "k8s.io/api/core/v1"
)

// emptyDir sets up a directory, or a tmpfs, that lives as long as the pod.
func (m mount) emptyDir() (Mounted, error) {
	dir := m.set.dir(m.pod.UID, "empty-dir", m.v.Name)
	source := m.v.EmptyDir
	out := Mounted{Path: dir}
	switch source.Medium {
	case corev1.StorageMediumMemory:
		var size int64
		if source.SizeLimit != nil {
			size = source.SizeLimit.Value()
		}
		if limit := memoryLimit(m.pod); limit > 0 && (size == 0 || limit < size) {
			size = limit
		}
		if err := tmpfs(dir, size, "0777"); err != nil {
			return out, err
		}
	default:
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return out, err
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		return out, err
	}
	return out, own(dir, m.group, corev1.FSGroupChangeAlways, false)
}

// memoryLimit returns the sum of the memory limits of a pod's containers in bytes, or 0 if
// one has no limit.
func memoryLimit(p *corev1.Pod) int64 {
	var sum int64
	for i := range p.Spec.Containers {
		q, ok := p.Spec.Containers[i].Resources.Limits[corev1.ResourceMemory]
		if !ok {
			return 0
		}
		sum += q.Value()
	}
	return sum
}

package volume

import (
	"os"

	corev1 "k8s.io/api/core/v1"

	"keelson.dev/services/node/internal/pod"
)

// emptyDir sets up a directory, or a tmpfs, that lives as long as the pod.
func (m mount) emptyDir() (Mounted, error) {
	dir := m.set.dir(m.pod.UID, "empty-dir", m.v.Name)
	source := m.v.EmptyDir
	out := Mounted{Path: dir}
	switch source.Medium {
	case corev1.StorageMediumMemory:
		if err := tmpfs(dir, m.memorySize(), "0777"); err != nil {
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

// memorySize returns the size of a volume in memory, in bytes: the smallest of its size
// limit, the pod's memory limit and the node's allocatable memory. 0 means that none of them
// is known.
func (m mount) memorySize() int64 {
	var size int64
	bound := func(n int64) {
		if n > 0 && (size == 0 || n < size) {
			size = n
		}
	}
	if m.set.cfg.Allocatable != nil {
		allocatable := m.set.cfg.Allocatable()
		bound(allocatable.Memory().Value())
	}
	total := pod.PodTotal(m.pod)
	bound(total.Limits.Memory().Value())
	if q := m.v.EmptyDir.SizeLimit; q != nil {
		bound(q.Value())
	}
	return size
}

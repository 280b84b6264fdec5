package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/pod"
)

// Mounts are a container's mounts in CRI's words. Volumes must be ready. lookup
// expands subPathExpr.
func (s *Set) Mounts(p *corev1.Pod, c *corev1.Container, lookup func(string) (string, bool)) ([]*runtimev1.Mount, error) {
	ready := s.Ready(p.UID)
	var out []*runtimev1.Mount
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		v, ok := ready[vm.Name]
		if !ok {
			return nil, fmt.Errorf("volume %q is not mounted", vm.Name)
		}
		host := v.Path
		sub := vm.SubPath
		if vm.SubPathExpr != "" {
			var missing string
			sub = pod.Expand(vm.SubPathExpr, func(name string) (string, bool) {
				value, ok := lookup(name)
				if !ok {
					missing = name
				}
				return value, ok
			})
			if missing != "" {
				return nil, fmt.Errorf("subPathExpr %q: variable %s is not set", vm.SubPathExpr, missing)
			}
		}
		if sub != "" {
			var err error
			if host, err = subPath(v.Path, sub); err != nil {
				return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", vm.Name, c.Name, err)
			}
		}
		m := &runtimev1.Mount{
			ContainerPath: vm.MountPath, HostPath: host, Readonly: vm.ReadOnly || v.ReadOnly,
			Propagation: propagation(vm.MountPropagation), SelinuxRelabel: false,
		}
		if !strings.HasPrefix(m.ContainerPath, "/") {
			m.ContainerPath = "/" + m.ContainerPath
		}
		if vm.RecursiveReadOnly != nil && *vm.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled {
			m.RecursiveReadOnly = true
		}
		out = append(out, m)
	}
	return out, nil
}

func propagation(mode *corev1.MountPropagationMode) runtimev1.MountPropagation {
	if mode == nil {
		return runtimev1.MountPropagation_PROPAGATION_PRIVATE
	}
	switch *mode {
	case corev1.MountPropagationHostToContainer:
		return runtimev1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	case corev1.MountPropagationBidirectional:
		return runtimev1.MountPropagation_PROPAGATION_BIDIRECTIONAL
	}
	return runtimev1.MountPropagation_PROPAGATION_PRIVATE
}

// subPath is a path below a volume, made if it is not there. Links in it are
// followed, but never out of the volume: os.Root makes the kernel see to that.
func subPath(volume, sub string) (string, error) {
	if filepath.IsAbs(sub) || strings.HasPrefix(filepath.Clean(sub), "..") {
		return "", fmt.Errorf("%q leads out of the volume", sub)
	}
	root, err := os.OpenRoot(volume)
	if err != nil {
		return "", err
	}
	defer root.Close()
	clean := filepath.Clean(sub)
	if _, err := root.Stat(clean); errors.Is(err, fs.ErrNotExist) {
		info, err := root.Stat(".")
		if err != nil {
			return "", err
		}
		if err := root.MkdirAll(clean, info.Mode().Perm()|0o700); err != nil {
			return "", err
		}
		if err := root.Chmod(clean, info.Mode().Perm()|0o700|info.Mode()&os.ModeSetgid); err != nil {
			return "", err
		}
	} else if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(filepath.Join(volume, clean))
	if err != nil {
		return "", err
	}
	base, err := filepath.EvalSymlinks(volume)
	if err != nil {
		return "", err
	}
	if real != base && !strings.HasPrefix(real, base+"/") {
		return "", fmt.Errorf("%q leads out of the volume", sub)
	}
	return real, nil
}

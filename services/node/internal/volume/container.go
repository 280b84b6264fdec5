package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"keelson.dev/services/node/internal/pod"
)

// Mounts returns a container's CRI mounts. The pod's volumes must be mounted. lookup
// resolves the variables of subPathExpr.
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
			target := filepath.Join(s.PodDir(p.UID), "volume-subpaths", vm.Name, c.Name, strconv.Itoa(i))
			if host, err = subPath(v.Path, sub, target); err != nil {
				// The expanded path may contain secrets; the path in the spec does not.
				return nil, fmt.Errorf("failed to prepare subPath %q for volumeMount %q of container %q: %w", vm.SubPath+vm.SubPathExpr, vm.Name, c.Name, err)
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

// subPath binds a path inside a volume, which is created if it does not exist, to target,
// and returns target. Symbolic links in the path are followed, but never out of the volume:
// the kernel ensures that. What is mounted is the file that was opened, whatever happens to
// the path meanwhile.
func subPath(volume, sub, target string) (string, error) {
	f, err := openInside(volume, sub)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if is, err := isMountpoint(target); err != nil {
		return "", err
	} else if is { // left by an instance that has ended
		if err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); err != nil {
			return "", fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	if err := mountTarget(target, info.IsDir()); err != nil {
		return "", err
	}
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("bind at %s: %w", target, err)
	}
	return target, nil
}

// mountTarget creates an empty directory or file to mount at.
func mountTarget(target string, directory bool) error {
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	if directory {
		return os.MkdirAll(target, 0o750)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	return os.WriteFile(target, nil, 0o640)
}

// openInside opens a path inside a volume. If the path does not exist, it is created as a
// directory. Errors do not contain the path.
func openInside(volume, sub string) (*os.File, error) {
	f, err := openBelow(volume, sub)
	var where *fs.PathError
	if errors.As(err, &where) {
		return nil, where.Err
	}
	return f, err
}

func openBelow(volume, sub string) (*os.File, error) {
	if !filepath.IsLocal(sub) {
		return nil, errors.New("the path leads out of the volume")
	}
	root, err := os.OpenRoot(volume)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	clean := filepath.Clean(sub)
	if _, err := root.Stat(clean); errors.Is(err, fs.ErrNotExist) {
		info, err := root.Stat(".")
		if err != nil {
			return nil, err
		}
		if err := root.MkdirAll(clean, info.Mode().Perm()|0o700); err != nil {
			return nil, err
		}
		if err := root.Chmod(clean, info.Mode().Perm()|0o700|info.Mode()&os.ModeSetgid); err != nil {
			return nil, err
		}
	} else if err != nil {
		return nil, err
	}
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(int(dir.Fd()), clean, how)
	if err != nil {
		return nil, fmt.Errorf("open inside the volume: %w", err)
	}
	return os.NewFile(uintptr(fd), volume), nil
}

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

// Needs is what a container's mounts depend on besides the pod's volumes.
type Needs struct {
	// Lookup resolves the variables of subPathExpr.
	Lookup func(string) (string, bool)
	// Image returns the runtime's image for a volume that is one. The result's error is
	// returned as it is.
	Image func(*corev1.Volume) (*runtimev1.ImageSpec, error)
	// Recursive is true if the runtime can make mounts read-only with all that is mounted
	// below them.
	Recursive bool
}

// Mounts returns a container's CRI mounts. The pod's volumes must be mounted.
func (s *Set) Mounts(p *corev1.Pod, c *corev1.Container, needs Needs) ([]*runtimev1.Mount, error) {
	ready := s.Ready(p.UID)
	var out []*runtimev1.Mount
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		v, ok := ready[vm.Name]
		if !ok {
			return nil, fmt.Errorf("volume %q is not mounted", vm.Name)
		}
		recursive, err := recursiveReadOnly(vm, needs.Recursive)
		if err != nil {
			return nil, err
		}
		host := v.Path
		sub := vm.SubPath
		if vm.SubPathExpr != "" {
			var missing string
			sub = pod.Expand(vm.SubPathExpr, func(name string) (string, bool) {
				value, ok := needs.Lookup(name)
				if !ok {
					missing = name
				}
				return value, ok
			})
			if missing != "" {
				return nil, fmt.Errorf("subPathExpr %q: variable %s is not set", vm.SubPathExpr, missing)
			}
		}
		if v.image != nil {
			image, err := needs.Image(v.image)
			if err != nil {
				return nil, err
			}
			out = append(out, &runtimev1.Mount{ContainerPath: absolute(vm.MountPath), Image: image, ImageSubPath: sub, Readonly: true})
			continue
		}
		if sub != "" {
			target := filepath.Join(s.PodDir(p.UID), "volume-subpaths", vm.Name, c.Name, strconv.Itoa(i))
			if host, err = subPath(v.Path, sub, target); err != nil {
				// The expanded path may contain secrets; the path in the spec does not.
				return nil, fmt.Errorf("failed to prepare subPath %q for volumeMount %q of container %q: %w", vm.SubPath+vm.SubPathExpr, vm.Name, c.Name, err)
			}
		}
		m := &runtimev1.Mount{
			ContainerPath: absolute(vm.MountPath), HostPath: host, Readonly: vm.ReadOnly || v.ReadOnly,
			Propagation: propagation(vm.MountPropagation), SelinuxRelabel: false, RecursiveReadOnly: recursive,
		}
		out = append(out, m)
	}
	return out, nil
}

func absolute(path string) string {
	if strings.HasPrefix(path, "/") {
		return path
	}
	return "/" + path
}

// recursiveReadOnly reports whether a mount is made read-only with all that is mounted below
// it. supported is true if the runtime can do that.
func recursiveReadOnly(vm *corev1.VolumeMount, supported bool) (bool, error) {
	mode := corev1.RecursiveReadOnlyDisabled
	if vm.RecursiveReadOnly != nil {
		mode = *vm.RecursiveReadOnly
	}
	switch {
	case mode == corev1.RecursiveReadOnlyDisabled:
		return false, nil
	case !vm.ReadOnly:
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not read-only", vm.Name)
	case vm.MountPropagation != nil && *vm.MountPropagation != corev1.MountPropagationNone:
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not compatible with propagation %q", vm.Name, *vm.MountPropagation)
	case mode == corev1.RecursiveReadOnlyIfPossible:
		return supported, nil
	case mode == corev1.RecursiveReadOnlyEnabled && !supported:
		return false, fmt.Errorf("volume %q requested recursive read-only mode, but it is not supported by the runtime", vm.Name)
	case mode == corev1.RecursiveReadOnlyEnabled:
		return true, nil
	}
	return false, fmt.Errorf("volume %q: recursive read-only mode %q is not known", vm.Name, mode)
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

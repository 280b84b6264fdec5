package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	corev1 "k8s.io/api/core/v1"
)

// hostPath returns a file or directory of the host.
func (m mount) hostPath() (Mounted, error) {
	return hostPath(m.v.HostPath.Path, m.v.HostPath.Type)
}

func hostPath(path string, kind *corev1.HostPathType) (Mounted, error) {
	out := Mounted{Path: path}
	if kind == nil || *kind == corev1.HostPathUnset {
		return out, nil
	}
	info, err := os.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return out, fmt.Errorf("hostPath type check failed: %w", err)
	}
	switch *kind {
	case corev1.HostPathDirectoryOrCreate:
		if missing {
			return out, os.MkdirAll(path, 0o755)
		}
		if !info.IsDir() {
			return out, fmt.Errorf("hostPath type check failed: %s is not a directory", path)
		}
	case corev1.HostPathFileOrCreate:
		if missing {
			// O_EXCL: neither follow a symbolic link nor open what another process creates
			// meanwhile.
			f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return out, err
			}
			return out, f.Close()
		}
		if info.IsDir() {
			return out, fmt.Errorf("hostPath type check failed: %s is not a file", path)
		}
	case corev1.HostPathDirectory:
		if missing || !info.IsDir() {
			return out, fmt.Errorf("hostPath type check failed: %s is not a directory", path)
		}
	case corev1.HostPathFile:
		if missing || !info.Mode().IsRegular() {
			return out, fmt.Errorf("hostPath type check failed: %s is not a file", path)
		}
	case corev1.HostPathSocket:
		if missing || info.Mode()&os.ModeSocket == 0 {
			return out, fmt.Errorf("hostPath type check failed: %s is not a socket file", path)
		}
	case corev1.HostPathCharDev:
		if missing || info.Mode()&os.ModeCharDevice == 0 {
			return out, fmt.Errorf("hostPath type check failed: %s is not a character device", path)
		}
	case corev1.HostPathBlockDev:
		if missing || info.Mode()&os.ModeDevice == 0 || info.Mode()&os.ModeCharDevice != 0 {
			return out, fmt.Errorf("hostPath type check failed: %s is not a block device", path)
		}
	default:
		return out, fmt.Errorf("hostPath type %q is not supported", *kind)
	}
	return out, nil
}

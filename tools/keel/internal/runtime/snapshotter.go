package runtime

import (
	"os"
	"path/filepath"
	"syscall"
)

// snapshotter returns "overlayfs" if the directory's file system supports it, else "native"
// (plain copies). A directory on overlayfs, for example, does not support it.
func snapshotter(dir string) string {
	probe, err := os.MkdirTemp(dir, ".overlay-*")
	if err != nil {
		return "overlayfs"
	}
	defer os.RemoveAll(probe)
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(probe, d), 0o700); err != nil {
			return "overlayfs"
		}
	}
	merged := filepath.Join(probe, "merged")
	options := "lowerdir=" + filepath.Join(probe, "lower") + ",upperdir=" + filepath.Join(probe, "upper") + ",workdir=" + filepath.Join(probe, "work")
	if err := syscall.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return "native"
	}
	_ = syscall.Unmount(merged, 0)
	return "overlayfs"
}

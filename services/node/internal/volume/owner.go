package volume

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
)

// own gives a volume to the pod's group: everything in it becomes the group's,
// readable and, unless readOnly, writable by it, and new files inherit the group.
func own(dir string, group *int64, policy corev1.PodFSGroupChangePolicy, readOnly bool) error {
	if group == nil {
		return nil
	}
	if policy == corev1.FSGroupChangeOnRootMismatch {
		info, err := os.Lstat(dir)
		if err != nil {
			return err
		}
		if owned(info, *group, readOnly) {
			return nil
		}
	}
	// The root comes last, so that an interrupted walk is not taken for a whole one.
	var dirs []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if name == dir {
			return nil
		}
		if d.IsDir() {
			dirs = append(dirs, name)
			return nil
		}
		return give(name, *group, readOnly)
	})
	if err != nil {
		return err
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := give(dirs[i], *group, readOnly); err != nil {
			return err
		}
	}
	return give(dir, *group, readOnly)
}

func mask(dir, readOnly bool) os.FileMode {
	var m os.FileMode = 0o660
	if readOnly {
		m = 0o440
	}
	if dir {
		m |= 0o110 | os.ModeSetgid
	}
	return m
}

func owned(info os.FileInfo, group int64, readOnly bool) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	m := mask(info.IsDir(), readOnly)
	return ok && int64(st.Gid) == group && info.Mode()&m == m
}

func give(name string, group int64, readOnly bool) error {
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Lchown(name, -1, int(group)); err != nil {
		return err
	}
	if info.Mode()&os.ModeSymlink != 0 {
		return nil
	}
	return os.Chmod(name, info.Mode().Perm()|info.Mode()&(os.ModeSetuid|os.ModeSetgid|os.ModeSticky)|mask(info.IsDir(), readOnly))
}

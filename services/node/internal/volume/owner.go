package volume

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// maxDepth is the maximum nesting of a volume's directories. One file descriptor is open
// per level.
const maxDepth = 1024

// own assigns a volume to the pod's group: everything in it gets the group, readable and,
// unless readOnly, writable by it, and new files inherit the group.
//
// A container may change the volume meanwhile. Each entry is opened by name relative to a
// directory that is already open, and changed through its descriptor, so a symbolic link is
// never followed, whenever it appears.
func own(dir string, group *int64, policy corev1.PodFSGroupChangePolicy, readOnly bool) error {
	if group == nil {
		return nil
	}
	root, err := os.OpenFile(dir, unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return fmt.Errorf("stat %s: %w", dir, err)
	}
	if policy == corev1.FSGroupChangeOnRootMismatch && owned(&st, *group, readOnly) {
		return nil
	}
	w := ownership{group: int(*group), readOnly: readOnly}
	// Change the root last, so that an interrupted walk is not mistaken for a complete one.
	if err := w.below(root, 1); err != nil {
		return fmt.Errorf("change the group of %s: %w", dir, err)
	}
	if err := w.give(int(root.Fd()), &st); err != nil {
		return fmt.Errorf("change the group of %s: %w", dir, err)
	}
	return nil
}

// ownership is a walk that assigns a volume's files to a group.
type ownership struct {
	group    int
	readOnly bool
}

// below changes everything in an open directory, depth first.
func (w ownership) below(dir *os.File, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("directories are nested more than %d deep", maxDepth)
	}
	for {
		names, err := dir.Readdirnames(1000)
		for _, name := range names {
			if err := w.entry(dir, name, depth); err != nil {
				return fmt.Errorf("%s: %w", strconv.QuoteToASCII(name), err)
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// entry changes one entry of an open directory. It ignores an entry that has vanished.
func (w ownership) entry(dir *os.File, name string, depth int) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		// Open the same directory for reading.
		sub, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(sub), name)
		err = w.below(f, depth+1)
		_ = f.Close()
		if err != nil {
			return err
		}
	}
	return w.give(fd, &st)
}

// give changes the file behind a descriptor, which may have been opened with O_PATH.
func (w ownership) give(fd int, st *unix.Stat_t) error {
	if err := unix.Fchownat(fd, "", -1, w.group, unix.AT_EMPTY_PATH|unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil // a symbolic link has no mode of its own
	}
	mode := st.Mode&0o7777 | mask(st.Mode&unix.S_IFMT == unix.S_IFDIR, w.readOnly)
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), mode)
}

// mask returns the mode bits that a volume's files, or its directories if dir, must have.
func mask(dir, readOnly bool) uint32 {
	var m uint32 = 0o660
	if readOnly {
		m = 0o440
	}
	if dir {
		m |= 0o110 | unix.S_ISGID
	}
	return m
}

func owned(st *unix.Stat_t, group int64, readOnly bool) bool {
	m := mask(true, readOnly)
	return int64(st.Gid) == group && st.Mode&m == m
}

package volume

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// removeDepth bounds how many folders are open at once.
const removeDepth = 64

// RemoveAll removes a tree that has no mount in it, and waits for nothing. It
// follows no links, and a container may have nested folders as deep as it likes:
// those below removeDepth are moved up first, so that no more descriptors than
// that are needed.
func RemoveAll(dir string) error {
	parent, err := os.OpenFile(filepath.Dir(dir), unix.O_DIRECTORY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	r := &removal{}
	if err := r.remove(parent, filepath.Base(dir), 0); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

// removal is the removing of one tree.
type removal struct {
	// top is the tree's own folder, where others are moved to; moved is how many were.
	top   *os.File
	moved int
}

// remove removes an entry of an open folder.
func (r *removal) remove(parent *os.File, name string, depth int) error {
	err := unix.Unlinkat(int(parent.Fd()), name, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	if depth > removeDepth {
		return r.up(parent, name)
	}
	fd, openErr := unix.Openat(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if openErr != nil {
		return errors.Join(err, openErr)
	}
	folder := os.NewFile(uintptr(fd), name)
	defer folder.Close()
	if depth == 0 {
		r.top = folder
	}
	if err := r.empty(folder, depth); err != nil {
		return err
	}
	err = unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// up moves a folder into the tree's own, under a name that is free.
func (r *removal) up(parent *os.File, name string) error {
	for {
		r.moved++
		err := unix.Renameat2(int(parent.Fd()), name, int(r.top.Fd()), ".removing-"+strconv.Itoa(r.moved), unix.RENAME_NOREPLACE)
		switch {
		case errors.Is(err, unix.EEXIST):
			continue
		case errors.Is(err, unix.ENOENT):
			return nil
		}
		return err
	}
}

// empty removes all entries of an open folder, those that come meanwhile included.
func (r *removal) empty(folder *os.File, depth int) error {
	for {
		if _, err := folder.Seek(0, io.SeekStart); err != nil {
			return err
		}
		names, err := folder.Readdirnames(1000)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := r.remove(folder, name, depth+1); err != nil {
				return err
			}
		}
	}
}

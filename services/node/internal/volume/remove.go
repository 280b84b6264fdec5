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

// removeDepth bounds how many directories are open at once.
const removeDepth = 64

// RemoveAll removes a tree that contains no mount. It never blocks and follows no symbolic
// links. A container may have nested directories to any depth: those below removeDepth are
// first moved up, so that no more file descriptors than that are open at once.
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

// removal is the removal of one tree.
type removal struct {
	// top is the root of the tree, which deep directories are moved to. moved counts them.
	top   *os.File
	moved int
}

// remove removes an entry of an open directory.
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

// up moves a directory to the root of the tree, under a name that is not in use.
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

// empty removes all entries of an open directory, including those that appear meanwhile.
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

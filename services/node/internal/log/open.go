package log

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Containers that mount the node's log directory, as log collectors do, can put symbolic
// links and FIFOs in place of logs. So in the path of a log,
// <root>/<pod>/<container>/<n>.log, only <root> is trusted: below it no symbolic link is
// followed, and only regular files are opened.

// resolve opens a path without following symbolic links in its last elements, of which parts
// is the number.
func resolve(name string, parts, flags int) (*os.File, error) {
	root, rel := filepath.Clean(name), ""
	for range parts {
		rel = filepath.Join(filepath.Base(root), rel)
		root = filepath.Dir(root)
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	defer func() { _ = unix.Close(dir) }()
	how := &unix.OpenHow{Flags: uint64(flags) | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(dir, strings.TrimPrefix(rel, "/"), how)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// open opens a log file for reading.
func open(name string) (*os.File, error) {
	// Without O_NONBLOCK, opening a FIFO would wait for a writer.
	f, err := resolve(name, 3, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", name)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// openFolder opens the directory of a container's logs.
func openFolder(name string) (*os.Root, error) {
	f, err := resolve(name, 2, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return os.OpenRoot("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
}

// entries returns the names in a directory that begin with prefix.
func entries(root *os.Root, prefix string) ([]string, error) {
	dir, err := root.Open(".")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	all, err := dir.Readdirnames(-1)
	var out []string
	for _, name := range all {
		if strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	return out, err
}

// Remove removes an instance's log and its rotated files. Whatever cannot be removed now is
// removed with the pod.
func Remove(name string) {
	root, err := openFolder(filepath.Dir(name))
	if err != nil {
		return
	}
	defer root.Close()
	files, _ := entries(root, filepath.Base(name))
	for _, f := range files {
		_ = root.Remove(f)
	}
}

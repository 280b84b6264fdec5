// Package cgroup starts processes in the cgroups of a cluster, lists the processes in them, and
// removes the cgroups. It supports both versions: with version 1, in which each controller has
// its own hierarchy, keel's processes are in one of the hierarchies.
//
// The package must never touch a cgroup that does not belong to the cluster's id.
package cgroup

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// FS is the directory in which the cgroups are mounted.
type FS string

// Host is the FS of this machine.
const Host FS = "/sys/fs/cgroup"

// v2 reports whether all controllers share one hierarchy.
func (f FS) v2() bool {
	_, err := os.Stat(filepath.Join(string(f), "cgroup.controllers"))
	return err == nil
}

// tracking returns the hierarchy in which keel's processes are.
func (f FS) tracking() (string, error) {
	if f.v2() {
		return string(f), nil
	}
	for _, name := range []string{"pids", "freezer", "cpu"} {
		path := filepath.Join(string(f), name)
		if _, err := os.Stat(filepath.Join(path, "cgroup.procs")); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no cgroup hierarchy in %s", f)
}

// Enter moves this process into a cgroup.
func (f FS) Enter(cgroup string) error {
	dir, err := f.make(cgroup)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
}

func (f FS) make(cgroup string) (string, error) {
	root, err := f.tracking()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, cgroup)
	return dir, os.MkdirAll(dir, 0o755)
}

// Start calls start, which must start one process with attr, so that the process begins in a
// cgroup. The caller must have locked its goroutine to its thread.
func (f FS) Start(cgroup string, attr *syscall.SysProcAttr, start func() error) error {
	dir, err := f.make(cgroup)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNone, err)
	}
	if f.v2() {
		d, err := os.Open(dir)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrNone, err)
		}
		defer d.Close()
		attr.UseCgroupFD, attr.CgroupFD = true, int(d.Fd())
		return start()
	}
	// A process begins in the cgroup of the thread that forks it. The thread must return to its
	// own cgroup: the first thread of a program never ends, and would be counted as a process
	// of the cgroup.
	root, err := f.tracking()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNone, err)
	}
	home, err := f.ofThread(filepath.Base(root))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNone, err)
	}
	self := []byte(strconv.Itoa(syscall.Gettid()))
	if err := os.WriteFile(filepath.Join(dir, "tasks"), self, 0); err != nil {
		return fmt.Errorf("%w: %w", ErrNone, err)
	}
	err = start()
	if back := os.WriteFile(filepath.Join(home, "tasks"), self, 0); back != nil && err == nil {
		err = fmt.Errorf("leave cgroup %s: %w", cgroup, back)
	}
	return err
}

// ErrNone means that the cgroup cannot be created or entered, and that no process was started.
var ErrNone = errors.New("no cgroup")

// ofThread returns the directory of the calling thread's cgroup in a hierarchy of version 1.
func (f FS) ofThread(hierarchy string) (string, error) {
	data, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		// hierarchy-ID:controller-list:cgroup-path (cgroups(7))
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && slices.Contains(strings.Split(parts[1], ","), hierarchy) {
			return filepath.Join(string(f), hierarchy, parts[2]), nil
		}
	}
	return "", fmt.Errorf("this thread is in no cgroup of the hierarchy %s", hierarchy)
}

// Roots returns the topmost cgroups of a cluster in all hierarchies that have one.
func (f FS) Roots(id string) []string {
	name := "keelson-" + id
	roots, _ := filepath.Glob(filepath.Join(string(f), "*", name))
	if _, err := os.Stat(filepath.Join(string(f), name)); err == nil {
		roots = append(roots, filepath.Join(string(f), name))
	}
	return roots
}

// Below returns the directories of a cgroup, such as /keelson-ID/node-0, in all hierarchies.
func (f FS) Below(cgroup string) (dirs []string) {
	dirs, _ = filepath.Glob(filepath.Join(string(f), "*", cgroup))
	if dir := filepath.Join(string(f), cgroup); isDir(dir) {
		dirs = append(dirs, dir)
	}
	return dirs
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// Processes returns the processes in cgroups and in those below them.
func Processes(dirs ...string) (pids []int, err error) {
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, walk(dir, func(path string) error {
			data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) || errors.Is(err, syscall.EOPNOTSUPP) {
				return nil // it was removed, or is threaded and its parent lists them
			}
			if err != nil {
				return err
			}
			for s := bufio.NewScanner(bytes.NewReader(data)); s.Scan(); {
				if pid, err := strconv.Atoi(strings.TrimSpace(s.Text())); err == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
			return nil
		}))
	}
	slices.Sort(pids)
	return slices.Compact(pids), errors.Join(errs...)
}

// Remove removes cgroups without processes, including those below them.
func Remove(dirs ...string) error {
	var errs []error
	for _, dir := range dirs {
		var all []string
		errs = append(errs, walk(dir, func(path string) error { all = append(all, path); return nil }))
		for _, path := range slices.Backward(all) {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("cgroup %s: %w", path, err))
				break // those above it cannot be removed either
			}
		}
	}
	return errors.Join(errs...)
}

// walk visits a cgroup and all cgroups below it. Those that are removed meanwhile are skipped.
func walk(dir string, visit func(path string) error) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV):
			return nil
		case err != nil:
			return err
		case d.IsDir():
			return visit(path)
		}
		return nil
	})
}

// Package sweep ends and removes what a cluster created on this machine, independently of the
// cluster's own files. It recognizes the cluster by its id, which is part of the names of its
// cgroups, namespaces, links and rules, and is in the environment of its processes. Every step
// can be repeated.
//
// The package must never touch anything that neither carries that id nor is in the cluster's
// home.
package sweep

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"keelson.dev/tools/keel/internal/cgroup"
	"keelson.dev/tools/keel/internal/hostnet"
)

// Variable is the environment variable with the id of a process's cluster. Child processes
// inherit it.
const Variable = "KEELSON_CLUSTER"

const (
	// patience is how long a step is repeated before it fails.
	patience = 20 * time.Second
	// lookEvery is the time between two attempts of a step.
	lookEvery = 50 * time.Millisecond
)

// Kill kills all processes of a cluster and waits until they have ended.
func Kill(ctx context.Context, id string) error {
	return kill(ctx, func() ([]int, error) { return Processes(id) })
}

// KillIn kills all processes in the cgroups with the given names, such as /keelson-ID/node-0,
// and removes those cgroups.
func KillIn(ctx context.Context, names ...string) error {
	var dirs []string
	for _, name := range names {
		dirs = append(dirs, cgroup.Host.Below(name)...)
	}
	if err := kill(ctx, func() ([]int, error) { return cgroup.Processes(dirs...) }); err != nil {
		return err
	}
	return wait(ctx, func() error { return cgroup.Remove(dirs...) })
}

// KillOthers kills all processes in the cgroups directly below name, such as /keelson-ID/keel,
// except for children for which keep returns true.
func KillOthers(ctx context.Context, name string, keep func(child string) bool) error {
	var others []string
	for _, dir := range cgroup.Host.Below(name) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if other := name + "/" + e.Name(); e.IsDir() && !keep(e.Name()) && !slices.Contains(others, other) {
				others = append(others, other)
			}
		}
	}
	return KillIn(ctx, others...)
}

func kill(ctx context.Context, find func() ([]int, error)) error {
	return wait(ctx, func() error {
		pids, err := find()
		for _, pid := range pids {
			// Open a handle of the process before checking again that it belongs to the
			// cluster, because its pid may have been reused.
			p, findErr := os.FindProcess(pid)
			if findErr != nil {
				continue
			}
			if again, _ := find(); slices.Contains(again, pid) {
				_ = p.Kill()
			}
			_ = p.Release()
		}
		if err == nil && len(pids) > 0 {
			return fmt.Errorf("still running: %s", describe(pids))
		}
		return err
	})
}

// wait repeats a step until it succeeds, or returns its last error after patience.
func wait(ctx context.Context, step func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := step()
		if err == nil {
			return nil
		}
		select {
		case <-time.After(lookEvery):
		case <-ctx.Done():
			return err
		}
	}
}

// describe returns the names and pids of processes, for messages.
func describe(pids []int) string {
	var out []string
	for _, pid := range pids {
		name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		out = append(out, fmt.Sprintf("%s (%d)", bytes.TrimSpace(name), pid))
	}
	return strings.Join(out, ", ")
}

// Processes returns the pids of a cluster's processes except the calling one: those in its
// cgroups, and those with its id in their environment.
func Processes(id string) ([]int, error) {
	pids, err := cgroup.Processes(cgroup.Host.Roots(id)...)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	mark := []byte(Variable + "=" + id)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err == nil && slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return bytes.Equal(v, mark) }) {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	pids = slices.Compact(pids)
	return slices.DeleteFunc(pids, func(pid int) bool { return pid == os.Getpid() || ended(pid) }), nil
}

// ended reports whether a process has exited. A zombie has.
func ended(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(data), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

// Cgroups removes a cluster's cgroups.
func Cgroups(ctx context.Context, id string) error {
	return wait(ctx, func() error { return cgroup.Remove(cgroup.Host.Roots(id)...) })
}

// Unmount unmounts everything below a directory, innermost first.
func Unmount(dir string) error {
	points, err := Mounts(dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range points {
		if err := syscall.Unmount(p, syscall.MNT_DETACH|umountNoFollow); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", p, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if left, err := Mounts(dir); err != nil || len(left) > 0 {
		return errors.Join(err, fmt.Errorf("still mounted: %s", strings.Join(left, ", ")))
	}
	return nil
}

// umountNoFollow is UMOUNT_NOFOLLOW of umount2(2).
const umountNoFollow = 8

// Mounts returns the mount points below a directory, innermost first.
func Mounts(dir string) ([]string, error) {
	dir, err := filepath.EvalSymlinks(dir) // the kernel lists paths without symbolic links
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		if p := unescape(fields[4]); strings.HasPrefix(p, dir+"/") {
			points = append(points, p)
		}
	}
	slices.Sort(points)
	slices.Reverse(points)
	return points, nil
}

// unescape undoes the octal escapes of /proc/self/mountinfo (proc(5)).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// ShimSockets returns the sockets of the shims of all containerds below a directory of nodes.
// The sockets are outside that directory, in containerd's own.
func ShimSockets(nodes string) (out []string) {
	for _, name := range []string{"address", "bootstrap.json"} {
		files, _ := filepath.Glob(filepath.Join(nodes, "*", "containerd", "state", "io.containerd.runtime.v2.task", "*", "*", name))
		for _, f := range files {
			data, err := os.ReadFile(f)
			if err != nil {
				continue
			}
			_, rest, ok := strings.Cut(string(data), "unix://")
			path, _, _ := strings.Cut(rest, `"`)
			path = strings.TrimSpace(path)
			if ok && filepath.Dir(path) == shimDir && !slices.Contains(out, path) {
				out = append(out, path)
			}
		}
	}
	return out
}

// ListeningShims returns the sockets at which a cluster's running shims listen. Unlike
// ShimSockets, it needs no files of the cluster.
func ListeningShims(id string) ([]string, error) {
	pids, err := Processes(id)
	return listening(pids, shimDir), err
}

// listening returns the sockets in a directory that processes have bound.
func listening(pids []int, dir string) (out []string) {
	for _, pid := range pids {
		proc := filepath.Join("/proc", strconv.Itoa(pid))
		// The sockets of the process's network namespace: Num RefCount Protocol Flags Type St
		// Inode Path (proc(5)).
		table, _ := os.ReadFile(filepath.Join(proc, "net", "unix"))
		bound := map[string]string{}
		for line := range strings.Lines(string(table)) {
			if f := strings.Fields(line); len(f) == 8 && filepath.Dir(f[7]) == dir {
				bound["socket:["+f[6]+"]"] = f[7]
			}
		}
		if len(bound) == 0 {
			continue
		}
		files, _ := os.ReadDir(filepath.Join(proc, "fd")) // the process may have ended
		for _, f := range files {
			open, _ := os.Readlink(filepath.Join(proc, "fd", f.Name()))
			if path, ok := bound[open]; ok && !slices.Contains(out, path) {
				out = append(out, path)
			}
		}
	}
	return out
}

// shimDir is the directory of shims' sockets. It does not depend on containerd's state
// directory.
const shimDir = "/run/containerd/s"

// RemoveSockets removes shims' sockets, then shimDir and its parent if they are empty.
func RemoveSockets(paths []string) error {
	var errs []error
	for _, p := range paths {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if len(paths) > 0 {
		_ = os.Remove(shimDir)
		_ = os.Remove(filepath.Dir(shimDir))
	}
	return errors.Join(errs...)
}

// Left describes what is left of a cluster on this machine, for messages. home may be empty.
func Left(id, home string) ([]string, error) {
	pids, err := Processes(id)
	errs := []error{err}
	var out []string
	for _, pid := range pids {
		out = append(out, "process "+describe([]int{pid}))
	}
	for _, dir := range cgroup.Host.Roots(id) {
		out = append(out, "cgroup "+dir)
	}
	net, err := hostnet.Left(id)
	errs = append(errs, err)
	out = append(out, net...)
	if home != "" {
		mounts, err := Mounts(home)
		errs = append(errs, err)
		for _, p := range mounts {
			out = append(out, "mount "+p)
		}
	}
	return out, errors.Join(errs...)
}

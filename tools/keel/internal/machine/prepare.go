package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// ownGroup is the cgroup of the container's own processes under cgroup v2, which allows no
	// processes in groups that distribute controllers to groups below them.
	ownGroup = "keelson-system"
)

// prepare gives the container what a node needs and an engine withholds from containers without
// --privileged. It must run on a locked thread.
func prepare() error {
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"make mounts shared", func() error { return unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, "") }},
		{"mount the container's own cgroups", mountCgroups},
		{"make the network's sysctls writable", writableNetwork},
	} {
		if err := step.do(); err != nil {
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
				err = fmt.Errorf("%w; a node's container needs the capabilities SYS_ADMIN, NET_ADMIN and SYS_PTRACE, and seccomp and AppArmor unconfined", err)
			}
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// mountCgroups mounts the container's own cgroup writable as if it were the root. The pods'
// cgroups are then part of the container's, and are removed with it.
func mountCgroups() error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return err
	}
	data, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		return err
	}
	// Unmount the engine's mounts, which may be stacked.
	for range 16 {
		if err := unix.Unmount(cgroupRoot, unix.MNT_DETACH); err != nil {
			break
		}
	}
	hierarchies := hierarchiesOf(string(data))
	if len(hierarchies) == 0 {
		return unifiedCgroups(cgroupRoot)
	}
	if err := unix.Mount("cgroup", cgroupRoot, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return err
	}
	for _, h := range hierarchies {
		if err := h.mount(); err != nil {
			return fmt.Errorf("%s: %w", h.options, err)
		}
	}
	return unix.Mount("", cgroupRoot, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// hierarchy is a hierarchy of cgroup v1.
type hierarchy struct {
	options string
	// names are the names below cgroupRoot: the directory of the mount, then symbolic links to
	// it.
	names []string
}

// hierarchiesOf parses /proc/PID/cgroup. An empty result means that only cgroup v2 is in use.
func hierarchiesOf(text string) []hierarchy {
	var out []hierarchy
	for line := range strings.Lines(text) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) < 3 || parts[1] == "" {
			continue
		}
		h := hierarchy{options: parts[1], names: []string{strings.TrimPrefix(parts[1], "name=")}}
		if controllers := strings.Split(parts[1], ","); len(controllers) > 1 {
			h.names = append(h.names, controllers...)
		}
		out = append(out, h)
	}
	return out
}

func (h hierarchy) mount() error {
	dir := filepath.Join(cgroupRoot, h.names[0])
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("cgroup", dir, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, h.options); err != nil {
		return err
	}
	for _, link := range h.names[1:] {
		if err := os.Symlink(h.names[0], filepath.Join(cgroupRoot, link)); err != nil {
			return err
		}
	}
	return nil
}

// unifiedCgroups is mountCgroups for cgroup v2. It moves all processes into ownGroup, because
// groups that distribute controllers cannot contain processes. Processes that an engine starts
// in the container later (exec) start in the cgroup of its first process.
func unifiedCgroups(root string) error {
	if err := unix.Mount("cgroup2", root, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	own := filepath.Join(root, ownGroup)
	if err := os.MkdirAll(own, 0o755); err != nil {
		return err
	}
	return moveProcesses(root, own)
}

// moveProcesses moves all processes of one group to another. It is not an error if a process
// ends meanwhile.
func moveProcesses(from, to string) error {
	for range 10 {
		list, err := os.ReadFile(filepath.Join(from, "cgroup.procs"))
		if err != nil {
			return err
		}
		pids := strings.Fields(string(list))
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			err := os.WriteFile(filepath.Join(to, "cgroup.procs"), []byte(pid), 0o644)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return fmt.Errorf("processes keep appearing in %s", from)
}

// writableNetwork makes the sysctls of the container's own network writable, but no others.
// Engines mount /proc/sys read-only.
func writableNetwork() error {
	fresh, err := os.MkdirTemp("/run", "proc-*")
	if err != nil {
		return err
	}
	defer os.Remove(fresh)
	if err := unix.Mount("proc", fresh, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	err = unix.Mount(filepath.Join(fresh, "sys/net"), "/proc/sys/net", "", unix.MS_BIND, "")
	return errors.Join(err, unix.Unmount(fresh, unix.MNT_DETACH))
}

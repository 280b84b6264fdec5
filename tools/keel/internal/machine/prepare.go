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
	// ownGroup is where this container's own processes live under cgroup v2, which
	// wants none beside groups that have controllers.
	ownGroup = "keelson-system"
)

// prepare gives the container what a node needs and an engine withholds from
// containers without --privileged. It runs on a locked thread.
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

// mountCgroups gives the container a writable view of its own cgroup as if that
// were the root of all: what pods get is a part of what the container has, and goes
// with it.
func mountCgroups() error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return err
	}
	data, err := os.ReadFile("/proc/thread-self/cgroup")
	if err != nil {
		return err
	}
	// The engine's own mounts, with those on them.
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

// hierarchy is one of cgroup v1's.
type hierarchy struct {
	options string
	// names are the directories below the root: the mount's, and links to it.
	names []string
}

// hierarchiesOf reads /proc/PID/cgroup; none means that v2 is in charge.
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

// unifiedCgroups is mountCgroups for v2. Processes that an engine starts in the
// container later (exec) follow its first process: groups with controllers take
// none.
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

// moveProcesses empties one group into another. A process that ends meanwhile is
// no error.
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

// writableNetwork makes the sysctls of the container's own network writable, and
// no others: engines mount /proc/sys read-only.
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

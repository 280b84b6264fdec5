// Package machine turns a container into the machine of a node: it runs containerd and the
// agent next to each other, with a directory that outlives the container.
//
// A node is its directory, not its container. On its start a container takes a kernel lock on
// the directory of its node's name, which is released when its holder ends. The certificate,
// images and volumes stay the same, whichever container runs the node and whichever address it
// has. So `down` and `up` bring back the same nodes, and two containers are never the same
// node.
//
// States: first process started → prepared (cgroups, sysctls, directory) → containerd answers →
// sandbox image imported → agent running → after SIGTERM: agent stopped, pods stopped,
// containerd stopped. After the preparation the first process only forwards signals and reaps:
// no other process may wait for processes that it did not start.
//
// Failures: if the container is killed, all of its processes end with it, and the next start
// finds the directory as after a power failure.
//
// Invariants: it never writes to a cgroup outside the container's own, nor to any of the host's
// sysctls: of /proc/sys only the part of the container's network becomes writable.
package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Init is the container's first process. It prepares the container for a node, whose directory
// is nodes/name, runs this program again with other arguments, and returns that process's exit
// code.
func Init(ctx context.Context, name, nodes, home string, args []string) (int, error) {
	// Only threads that are created later share a new cgroup namespace, so everything until the
	// start of the program must happen on one thread.
	runtime.LockOSThread()
	if err := prepare(); err != nil {
		return 0, err
	}
	slot, err := Claim(nodes, name)
	if err != nil {
		return 0, err
	}
	defer slot.Close()
	if err := slot.Mount(nodes, home); err != nil {
		return 0, err
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("become the reaper: %w", err)
	}
	child, err := os.StartProcess("/proc/self/exe", append([]string{os.Args[0]}, args...), &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		// The child gets its own process group, so that signals from a terminal reach it only
		// through this process.
		Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(child.Pid, syscall.SIGTERM) })
	defer stop()
	return reap(child.Pid)
}

// reap waits for every process that becomes a child of this one, until child ends, and returns
// child's exit code.
func reap(child int) (int, error) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 0, fmt.Errorf("wait for processes: %w", err)
		case pid == child && status.Exited():
			return status.ExitStatus(), nil
		case pid == child && status.Signaled():
			return 128 + int(status.Signal()), nil
		}
	}
}

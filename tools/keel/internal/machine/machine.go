// Package machine makes a container the machine of a node: it runs containerd and
// the agent side by side, with a directory that outlives the container.
//
// A node is its directory, not its container. A container that starts holds the
// directory of its node's name by a lock of the kernel's that goes with its holder:
// same certificate, same images, same volumes, whatever container it is this time and
// whichever address it has. So `down` and `up` bring back the same nodes, and two
// containers are never one node.
//
// States: first process → prepared (cgroups, sysctls, directory) → containerd
// answers → sandbox image is there → agent runs → on SIGTERM: agent ends, pods end,
// containerd ends. The first process does nothing after the preparation but pass on
// signals and reap: nobody else may wait for processes that it did not start. If
// the container is killed all of it ends with the container, and the next start
// finds the directory as after a power loss.
//
// It must never write to a cgroup outside the container's own, nor to any sysctl
// of the host's: of /proc/sys the container's network alone becomes writable.
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

// Init is the first process: it prepares the container for a node, whose directory is
// nodes/name, runs the program again with other arguments, and returns its exit code.
func Init(ctx context.Context, name, nodes, home string, args []string) (int, error) {
	// Threads share a cgroup namespace only if they were started later than it:
	// all from here to the start of the program happens on one.
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
		// A group of its own: what a terminal sends reaches it through here alone.
		Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { _ = syscall.Kill(child.Pid, syscall.SIGTERM) })
	defer stop()
	return reap(child.Pid)
}

// reap waits for every process that ends up here, until the child has ended.
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

// Package compose_test runs deploy/compose as a user would, in a container engine of its
// own: up, the demonstration application, kills of every container under load, scaling,
// down and up on other addresses, a restart of the engine.
//
// All of it happens in namespaces that end with the test: the engine's processes, links,
// rules and mounts end with them, however the test ends. The process that waits outside
// removes what remains on the machine, a directory and a cgroup. Nothing has a route out.
package compose_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"keelson.dev/e2e/host"
	"keelson.dev/e2e/internal/wait"
)

var rounds = flag.Int("rounds", 0, "how often every container is killed; 0 kills each apiserver, the balancer, the leaders and a node once")

// The test starts itself twice, as the first process of new namespaces and then as the
// test, and passes its directory on.
const (
	roleVariable = "KEELSON_COMPOSE_TEST_ROLE"
	dirVariable  = "KEELSON_COMPOSE_TEST_DIR"
)

func TestMain(m *testing.M) {
	flag.Parse()
	switch os.Getenv(roleVariable) {
	case "":
		os.Exit(outside())
	case "first":
		os.Exit(first())
	}
	os.Exit(m.Run())
}

// outside starts the namespaces, waits for their end and removes what remains.
func outside() int {
	for _, program := range []string{"dockerd", "docker", "docker-compose", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			fmt.Fprintf(os.Stderr, "%v: run `make compose-test`, which installs it first\n", err)
			return 1
		}
	}
	machine, err := host.Look()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "keelson-compose-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// The engine's socket is in it; a socket's path has 107 bytes at most.
	code, err := again("first", &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}, dirVariable+"="+dir)
	// Arguments are evaluated from left to right: the look at the machine comes last.
	if err := errors.Join(err, removeCgroups(cgroupParent(dir)), removeAll(dir), machine.Gone(filepath.Base(dir))); err != nil {
		fmt.Fprintln(os.Stderr, "left behind:", err)
		return 1
	}
	return code
}

// cgroupParent is the parent of the cgroups of all the engine's containers.
func cgroupParent(dir string) string { return "/" + filepath.Base(dir) }

// again runs this program in another role and returns its exit code.
func again(role string, attributes *syscall.SysProcAttr, env ...string) (int, error) {
	runtime.LockOSThread() // because Pdeathsig is sent when this thread ends
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(append(os.Environ(), roleVariable+"="+role), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = attributes
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("start in namespaces of its own (this needs root): %w", err)
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil
	}
	return 0, err
}

// first is the first process of the namespaces: it mounts what the namespaces need of
// their own, starts the test, and reaps processes until the test ends.
func first() int {
	dir := os.Getenv(dirVariable)
	for _, step := range []func() error{
		func() error { return syscall.Mount("proc", "/proc", "proc", 0, "") },
		func() error { return syscall.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755") },
		func() error { return ownEtc(filepath.Join(dir, "etc")) },
		func() error { return disk(filepath.Join(dir, "disk")) },
		func() error { return exec.Command("ip", "link", "set", "lo", "up").Run() },
	} {
		if err := step(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the namespaces:", err)
			return 1
		}
	}
	child, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Env:   append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, roleVariable+"=") }), roleVariable+"=test"),
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			fmt.Fprintln(os.Stderr, "wait:", err)
			return 1
		case pid == child.Pid && status.Exited():
			return status.ExitStatus()
		case pid == child.Pid && status.Signaled():
			return 1
		}
	}
}

// ownEtc mounts a file system over /etc, where an engine writes a key.
func ownEtc(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		return err
	}
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	if err := errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)); err != nil {
		return err
	}
	return syscall.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work)
}

// disk creates a file system for the engine: nodes report pressure when theirs is nearly
// full, which this machine's may be for other reasons.
func disk(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"truncate", "-s", "16G", dir + ".img"},
		{"mkfs.ext4", "-q", "-F", "-E", "nodiscard", dir + ".img"},
		{"mount", "-o", "loop,discard", dir + ".img", dir},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", args[0], err, out)
		}
	}
	return nil
}

// removeCgroups removes a group and all below it from every hierarchy; it repeats, because
// a group stays busy for a moment after its processes have ended.
func removeCgroups(group string) error {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + group)
	roots = append(roots, "/sys/fs/cgroup"+group)
	var errs []error
	for _, root := range roots {
		errs = append(errs, wait.Until(context.Background(), 20*time.Second, func(context.Context) error {
			var dirs []string
			_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return nil
			})
			var failed error
			for _, d := range slices.Backward(dirs) {
				if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
					failed = errors.Join(failed, err)
				}
			}
			return failed
		}))
	}
	return errors.Join(errs...)
}

// removeAll removes a directory; the mounts in it end with their namespace, though not
// always at once.
func removeAll(dir string) error {
	return wait.Until(context.Background(), 20*time.Second, func(context.Context) error { return os.RemoveAll(dir) })
}

// Package compose_test runs deploy/compose as a person would, in a container engine
// of its own: up, the demonstration application, kills of every container under
// load, scaling, down and up on other addresses, a restart of the engine.
//
// All of it happens in namespaces that end with the test: processes, links, rules
// and mounts of the engine go with them, whatever way the test ends. What is left
// on the machine's side, a directory and a cgroup, is removed by the process that
// waits outside. Nothing has a route out.
package compose_test

import (
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
)

var rounds = flag.Int("rounds", 0, "how often every container is killed; 0 kills each apiserver, the balancer, the leaders and a node once")

// The test starts itself twice: as the first process of new namespaces, and then as
// the test. The directory of it all is handed on.
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

// outside starts the namespaces, waits for their end and clears away.
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
	// Beside the engine's socket, of whose path the kernel takes 107 bytes.
	code, err := again("first", &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNET, Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL,
	}, dirVariable+"="+dir)
	// Joined from left to right: the look comes last.
	if err := errors.Join(err, removeCgroups(cgroupParent(dir)), removeAll(dir), machine.Gone(filepath.Base(dir))); err != nil {
		fmt.Fprintln(os.Stderr, "left behind:", err)
		return 1
	}
	return code
}

// cgroupParent is above all the engine's containers.
func cgroupParent(dir string) string { return "/" + filepath.Base(dir) }

// again runs this program in another role.
func again(role string, attributes *syscall.SysProcAttr, env ...string) (int, error) {
	runtime.LockOSThread() // the thread that Pdeathsig watches
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

// first is the first process of the namespaces: it mounts what has to be the
// namespaces' own, starts the test, and reaps.
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

// ownEtc lays a file system of our own over /etc: an engine leaves a key there.
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

// disk makes a file system for the engine: nodes report pressure when theirs is
// short, and this machine's may be for reasons of its own.
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

// removeCgroups removes a group of every hierarchy with all below it; the kernel
// may need a moment to let go of processes that have just ended.
func removeCgroups(group string) error {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + group)
	roots = append(roots, "/sys/fs/cgroup"+group)
	deadline := time.Now().Add(20 * time.Second)
	var errs []error
	for _, root := range roots {
		for {
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
			if failed == nil {
				break
			}
			if time.Now().After(deadline) {
				errs = append(errs, failed)
				break
			}
			<-time.After(50 * time.Millisecond)
		}
	}
	return errors.Join(errs...)
}

// removeAll removes a directory; mounts in it went with their namespace, though not
// always at once.
func removeAll(dir string) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := os.RemoveAll(dir)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		<-time.After(50 * time.Millisecond)
	}
}

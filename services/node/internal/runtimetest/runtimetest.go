// Package runtimetest runs a real containerd for tests, in a network namespace that ends
// with the tests, with its state in a directory of its own.
//
// A package that uses it calls Main from its TestMain, which runs the tests again in the
// new namespace, and Start to get the runtime, which all tests of the package share. It
// needs root, and installs whatever else it needs; it never skips.
package runtimetest

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keelson.dev/services/node/internal/cri"
)

// installScript installs what the tests need.
//
//go:embed install.sh
var installScript string

const (
	goarch = runtime.GOARCH
	marker = "KEELSON_TEST_NAMESPACE"

	// Image is the test image, which contains busybox.
	Image = "keelson.test/box:1"
	// UserImage is the same image with a non-root user.
	UserImage = "keelson.test/user:1"
	// Handler is a runtime handler of the runtime besides the default one.
	Handler = "other"
	pause   = "keelson.test/pause:1"
)

// Main runs the tests of a package in a network namespace of their own and returns their
// exit code. When it returns, everything it started has ended.
func Main(m *testing.M) int {
	if os.Getenv(marker) != "" {
		code := m.Run()
		if shared != nil {
			shared.stop()
		}
		return code
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "runtimetest: these tests start containers and need root")
		return 1
	}
	// A directory with another containerd, ctr and runc takes precedence over Debian's.
	if dir := os.Getenv("KEELSON_TEST_RUNTIME"); dir != "" {
		if err := os.Setenv("PATH", dir+":"+os.Getenv("PATH")); err != nil {
			fmt.Fprintln(os.Stderr, "runtimetest:", err)
			return 1
		}
	}
	// Install packages before leaving the machine's network namespace.
	install := exec.Command("/bin/sh", "-s")
	install.Stdin = strings.NewReader(installScript)
	if out, err := install.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "runtimetest: install test dependencies: %v: %s\n", err, out)
		return 1
	}
	dir, err := os.MkdirTemp("/tmp", "keelson-node-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "runtimetest:", err)
		return 1
	}
	defer clearAway(dir)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), marker+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGTERM}
	runtime.LockOSThread() // Pdeathsig refers to this thread
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "runtimetest: new network namespace:", err)
		return 1
	}
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	}
	fmt.Fprintln(os.Stderr, "runtimetest:", err)
	return 1
}

// Runtime is a containerd for tests.
type Runtime struct {
	// Dir contains all its files.
	Dir string
	// Client is a CRI client of the runtime.
	Client *cri.Client
	// CgroupRoot is the root cgroup for pods.
	CgroupRoot string
	// CNIDir is the directory of its network configuration.
	CNIDir string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
}

var (
	shared *Runtime
	once   sync.Once
)

// Start returns the package's runtime, and starts it at the first call.
func Start(t testing.TB) *Runtime {
	t.Helper()
	if os.Getenv(marker) == "" {
		t.Fatal("runtimetest: TestMain must call runtimetest.Main")
	}
	once.Do(func() { shared = begin(t) })
	if shared == nil {
		t.Fatal("runtimetest: the runtime did not start")
	}
	return shared
}

func begin(t testing.TB) *Runtime {
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("loopback: %v: %s", err, out)
	}
	var err error
	dir := os.Getenv(marker)
	r := &Runtime{Dir: dir, CgroupRoot: "/" + filepath.Base(dir), CNIDir: filepath.Join(dir, "cni")}
	if err := os.MkdirAll(r.CNIDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(r.config(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	if r.Client, err = cri.Dial("unix://" + r.socket()); err != nil {
		t.Fatal(err)
	}
	r.Run(t)
	r.load(t, imageArchive(t, pause, []string{"/bin/sleep", "2147483647"}, nil, ""))
	r.load(t, imageArchive(t, Image, nil, []string{"/bin/sleep", "2147483647"}, ""))
	r.load(t, imageArchive(t, UserImage, nil, []string{"/bin/sleep", "2147483647"}, "1000"))
	return r
}

func (r *Runtime) socket() string { return filepath.Join(r.Dir, "containerd.sock") }

// Socket returns the runtime's endpoint.
func (r *Runtime) Socket() string { return "unix://" + r.socket() }

// Version returns containerd's version, for example "1.6.20".
func Version(t testing.TB) string {
	out, err := exec.Command("containerd", "--version").Output()
	if err != nil {
		t.Fatalf("containerd: %v", err)
	}
	for _, f := range strings.Fields(string(out)) {
		f = strings.TrimPrefix(f, "v")
		if len(f) > 2 && f[0] >= '0' && f[0] <= '9' && strings.Contains(f, ".") {
			return f
		}
	}
	t.Fatalf("containerd: no version in %q", out)
	return ""
}

func (r *Runtime) config(t testing.TB) string {
	restrict := "true"
	if mayLowerOOMScore() {
		restrict = "false"
	}
	if strings.HasPrefix(Version(t), "1.") {
		return fmt.Sprintf(`version = 2
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[1]s/containerd.sock"
[debug]
  level = "warn"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[2]s"
  restrict_oom_score_adj = %[3]s
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.other]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "%[1]s/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "%[1]s/certs.d"
`, r.Dir, pause, restrict)
	}
	return fmt.Sprintf(`version = 3
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[1]s/containerd.sock"
[debug]
  level = "warn"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "%[2]s"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = "%[1]s/certs.d"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = %[3]s
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.other]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "%[1]s/cni"
`, r.Dir, pause, restrict)
}

// mayLowerOOMScore reports whether this process has CAP_SYS_RESOURCE.
func mayLowerOOMScore() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&hdr, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// Run starts containerd, also after Kill, and waits until it answers.
func (r *Runtime) Run(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(r.Dir, "containerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("containerd", "--config", filepath.Join(r.Dir, "config.toml"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatalf("containerd: %v", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	r.mu.Lock()
	r.cmd, r.done = cmd, done
	r.mu.Unlock()
	deadline := time.Now().Add(30 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := r.Client.Images(ctx)
		cancel()
		if err == nil {
			return
		}
		select {
		case <-done:
			t.Fatalf("containerd ended:\n%s", tail(filepath.Join(r.Dir, "containerd.log")))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("containerd does not answer: %v\n%s", err, tail(filepath.Join(r.Dir, "containerd.log")))
		}
	}
}

// Kill kills containerd with SIGKILL. Containers keep running.
func (r *Runtime) Kill(t testing.TB) {
	t.Helper()
	r.mu.Lock()
	cmd, done := r.cmd, r.done
	r.mu.Unlock()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-done
}

// Signal sends containerd a signal.
func (r *Runtime) Signal(t testing.TB, s os.Signal) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

func tail(name string) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(b, []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-20):], []byte("\n")))
}

// stop removes all sandboxes and stops containerd.
func (r *Runtime) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if seen, err := r.Client.List(ctx); err == nil {
		for id, s := range seen {
			if s.Sandbox {
				_ = r.Client.StopSandbox(ctx, id)
				_ = r.Client.RemoveSandbox(ctx, id)
			}
		}
	}
	_ = r.Client.Close()
	r.mu.Lock()
	cmd, done := r.cmd, r.done
	r.mu.Unlock()
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		_ = cmd.Process.Kill()
		<-done
	}
}

// clearAway removes what a test's runtime has left, even if the test was aborted: processes
// whose command line contains its directory, mounts below it, its cgroups, and its files.
func clearAway(dir string) {
	for range 2 { // a killed shim may take a moment to end
		procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, name := range procs {
			b, err := os.ReadFile(name)
			pid, errPID := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err == nil && errPID == nil && bytes.Contains(b, []byte(dir)) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		unmountAll(dir)
		killCgroups("/" + filepath.Base(dir))
	}
	removeCgroups("/" + filepath.Base(dir))
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, "runtimetest: clean up:", err)
	}
}

// killCgroups kills the processes of containers whose shim is gone.
func killCgroups(root string) {
	for _, dir := range cgroupDirs(root) {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}

// unmountAll unmounts everything that is mounted below dir.
func unmountAll(dir string) {
	for range 3 {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return
		}
		lines := strings.Split(string(b), "\n")
		for i := len(lines) - 1; i >= 0; i-- {
			if f := strings.Fields(lines[i]); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
				_ = unix.Unmount(f[4], unix.MNT_DETACH)
			}
		}
	}
}

func removeCgroups(root string) {
	dirs := cgroupDirs(root)
	for i := len(dirs) - 1; i >= 0; i-- {
		_ = os.Remove(dirs[i])
	}
}

// cgroupDirs returns the directories of a cgroup and its descendants in every hierarchy,
// parents first.
func cgroupDirs(root string) []string {
	var dirs []string
	mounts, _ := filepath.Glob("/sys/fs/cgroup/*")
	for _, base := range append(mounts, "/sys/fs/cgroup") {
		_ = filepath.Walk(base+root, func(p string, info os.FileInfo, err error) error {
			if err == nil && info.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
	}
	return dirs
}

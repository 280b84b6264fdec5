package sweep

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"keelson.dev/tools/keel/internal/cgroup"
)

// newID returns a random id, which no existing cluster is likely to have.
func newID() string { return fmt.Sprintf("%06x", rand.IntN(1<<24)) }

// start starts a command on a separate thread, in a cgroup if group is not empty, and reaps it
// when it ends.
func start(t *testing.T, fs cgroup.FS, group string, cmd *exec.Cmd) {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if group == "" {
			started <- cmd.Start()
			return
		}
		started <- fs.Start(group, cmd.SysProcAttr, cmd.Start)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-ended
	})
}

// awaitProcesses waits until find returns the expected number of processes.
func awaitProcesses(t *testing.T, find func() ([]int, error), want int) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		pids, err := find()
		if err == nil && len(pids) == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d processes (%s), want %d: %v", len(pids), describe(pids), want, err)
		}
	}
}

// Daemons that have left their parent, process group and environment are found by their cgroup,
// others by their environment. Processes with another id are left alone.
func TestKillEndsAllOfACluster(t *testing.T) {
	id, other := newID(), newID()
	group := "/keelson-" + id + "/keel/daemon"
	start(t, cgroup.Host, group, exec.Command("sh", "-c", "setsid env -i sleep 300 & setsid env -i sleep 300 & wait"))
	marked := exec.Command("sleep", "300")
	marked.Env = []string{Variable + "=" + id}
	start(t, cgroup.Host, "", marked)
	foreign := exec.Command("sleep", "300")
	foreign.Env = []string{Variable + "=" + other, "X=" + Variable + "=" + id}
	start(t, cgroup.Host, "", foreign)
	awaitProcesses(t, func() ([]int, error) { return Processes(id) }, 4)
	left, err := Left(id, "")
	if err != nil || len(left) < 5 || !slices.ContainsFunc(left, func(l string) bool { return strings.HasSuffix(l, "keelson-"+id) }) {
		t.Errorf("Left: %q, %v", left, err)
	}
	for range 2 {
		if err := Kill(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := Cgroups(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := Left(id, ""); err != nil || len(left) > 0 {
		t.Errorf("Left: %q, %v", left, err)
	}
	if pids, err := Processes(other); err != nil || len(pids) != 1 {
		t.Errorf("the other cluster's processes: %v, %v", pids, err)
	}
}

// KillIn with the cgroup of one node leaves the processes of others running, even if their name
// starts the same.
func TestKillInOneCgroup(t *testing.T) {
	id := newID()
	one, two := "/keelson-"+id+"/node-1", "/keelson-"+id+"/node-10"
	for _, group := range []string{one + "/pod/container", two} {
		start(t, cgroup.Host, group, exec.Command("sleep", "300"))
	}
	if err := KillIn(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	if pids, err := Processes(id); err != nil || len(pids) != 1 {
		t.Errorf("%v, %v", pids, err)
	}
	if dirs := cgroup.Host.Below(one); len(dirs) > 0 {
		t.Errorf("cgroups still exist: %v", dirs)
	}
	if err := Kill(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := Cgroups(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// KillOthers kills processes in groups that are not kept, and leaves those in kept groups and
// elsewhere running.
func TestKillOthers(t *testing.T) {
	id := newID()
	parent := "/keelson-" + id + "/keel"
	for _, group := range []string{parent + "/wanted", parent + "/forgotten", "/keelson-" + id + "/node-0"} {
		start(t, cgroup.Host, group, exec.Command("sleep", "300"))
	}
	if err := KillOthers(t.Context(), parent, func(child string) bool { return child == "wanted" }); err != nil {
		t.Fatal(err)
	}
	if pids, err := Processes(id); err != nil || len(pids) != 2 {
		t.Errorf("%v, %v", pids, err)
	}
	if dirs := cgroup.Host.Below(parent + "/forgotten"); len(dirs) > 0 {
		t.Errorf("cgroups still exist: %v", dirs)
	}
	if err := KillOthers(t.Context(), "/keelson-"+newID()+"/keel", func(string) bool { return false }); err != nil {
		t.Errorf("without any cgroups: %v", err)
	}
	if err := Kill(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := Cgroups(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// Both versions of cgroups work. Hosts with version 1 also mount version 2, without
// controllers.
func TestBothVersions(t *testing.T) {
	for _, fs := range []cgroup.FS{cgroup.Host, cgroup.Host + "/unified"} {
		if _, err := os.Stat(string(fs)); err != nil {
			continue
		}
		id := newID()
		start(t, fs, "/keelson-"+id+"/keel/daemon", exec.Command("sh", "-c", "setsid sleep 300 & wait"))
		find := func() ([]int, error) { return cgroup.Processes(fs.Below("/keelson-" + id)...) }
		awaitProcesses(t, find, 2)
		if err := cgroup.Remove(fs.Roots(id)...); err == nil {
			t.Errorf("%s: a cgroup with processes was removed", fs)
		}
		if err := kill(t.Context(), find); err != nil {
			t.Fatal(err)
		}
		if err := wait(t.Context(), func() error { return cgroup.Remove(fs.Roots(id)...) }); err != nil {
			t.Fatal(err)
		}
	}
}

// Processes that cannot be killed are named in the error.
func TestWhatStaysIsNamed(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	id := newID()
	start(t, cgroup.Host, "/keelson-"+id+"/keel/x", exec.Command("sleep", "300"))
	if err := Cgroups(ctx, id); err == nil || !strings.Contains(err.Error(), "keelson-"+id) {
		t.Errorf("%v", err)
	}
	// A process that is no longer found when it is to be killed is not killed.
	looks := 0
	err := kill(ctx, func() ([]int, error) {
		if looks++; looks == 1 {
			return []int{os.Getpid()}, nil
		}
		return nil, nil
	})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("(%d)", os.Getpid())) {
		t.Errorf("%v", err)
	}
	if err := Kill(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if err := Cgroups(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// Bind mounts of other directories are unmounted, and the files in them are kept.
func TestUnmount(t *testing.T) {
	home, foreign := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(foreign, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	twin := home + "-beside"
	for _, dir := range []string{filepath.Join(home, "a b"), filepath.Join(home, `tab	back\slash`), twin} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for range 2 { // two mounts on the same directory
			if err := syscall.Mount(foreign, dir, "", syscall.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
		}
	}
	through := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(home, through); err != nil {
		t.Fatal(err)
	}
	if points, err := Mounts(through); err != nil || len(points) != 4 {
		t.Fatalf("%q, %v", points, err)
	}
	for range 2 {
		if err := Unmount(home); err != nil {
			t.Fatal(err)
		}
	}
	if points, err := Mounts(filepath.Dir(twin)); err != nil || len(points) != 2 {
		t.Errorf("next to it are mounted %q, %v", points, err)
	}
	if _, err := os.Stat(filepath.Join(foreign, "file")); err != nil {
		t.Error(err)
	}
	if err := Unmount(filepath.Join(home, "none")); err != nil {
		t.Error(err)
	}
}

func TestShimSockets(t *testing.T) {
	nodes := t.TempDir()
	for name, content := range map[string]string{
		"node-0/containerd/state/io.containerd.runtime.v2.task/k8s.io/a/address":        "unix:///run/containerd/s/0a",
		"node-1/containerd/state/io.containerd.runtime.v2.task/k8s.io/b/bootstrap.json": `{"version":3,"address":"unix:///run/containerd/s/0b","protocol":"ttrpc"}`,
		"node-1/containerd/state/io.containerd.runtime.v2.task/k8s.io/b/address":        "unix:///run/containerd/s/0b\n",
		"node-1/containerd/state/io.containerd.runtime.v2.task/k8s.io/c/address":        "unix:///run/containerd/s/../../../etc/passwd",
		"node-1/containerd/state/io.containerd.runtime.v2.task/k8s.io/d/address":        "unix:///home/x",
	} {
		path := filepath.Join(nodes, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got := ShimSockets(nodes)
	slices.Sort(got)
	if want := []string{"/run/containerd/s/0a", "/run/containerd/s/0b"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// The sockets of running shims are found without the files of their containerd. Those of other
// processes, and those elsewhere, are not among them.
func TestListening(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	var listener net.ListenConfig
	for _, path := range []string{filepath.Join(dir, "own"), filepath.Join(elsewhere, "x")} {
		l, err := listener.Listen(t.Context(), "unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	other := exec.Command("sleep", "300")
	start(t, cgroup.Host, "", other)
	if got, want := listening([]int{os.Getpid()}, dir), []string{filepath.Join(dir, "own")}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if got := listening([]int{other.Process.Pid}, dir); len(got) > 0 {
		t.Errorf("sockets of another process: %q", got)
	}
}

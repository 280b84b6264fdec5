package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const unifiedRole = "MACHINE_TEST_UNIFIED"

// TestUnifiedCgroups does in a separate cgroup v2 what the first process of a container does:
// its cgroup becomes the root that it sees, writable and without processes, and the process
// itself moves into a group below. Every kernel can mount v2, even where v1 has the
// controllers.
func TestUnifiedCgroups(t *testing.T) {
	switch os.Getenv(unifiedRole) {
	case "":
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestUnifiedCgroups$")
		cmd.Env = append(os.Environ(), unifiedRole+"=machine", "MACHINE_TEST_DIR="+t.TempDir())
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "the root cgroup has no processes") {
			t.Errorf("%v\n%s", err, out)
		}
	case "machine":
		asMachine(t)
	case "container":
		asContainer(t)
	}
}

// asMachine creates a group for the container and starts it there.
func asMachine(t *testing.T) {
	all := filepath.Join(os.Getenv("MACHINE_TEST_DIR"), "all")
	if err := errors.Join(os.Mkdir(all, 0o755), unix.Mount("cgroup2", all, "cgroup2", 0, "")); err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(all, fmt.Sprintf("keelson-machine-test-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(os.Remove(filepath.Join(group, ownGroup)), os.Remove(group)); err != nil {
			t.Error(err)
		}
	}()
	fd, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestUnifiedCgroups$")
	cmd.Env = append(os.Environ(), unifiedRole+"=container")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	out, err := cmd.CombinedOutput()
	fmt.Println(string(out))
	if err != nil {
		t.Fatal(err)
	}
}

func asContainer(t *testing.T) {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(os.Getenv("MACHINE_TEST_DIR"), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unifiedCgroups(root); err != nil {
		t.Fatal(err)
	}
	if inRoot := content(root, "cgroup.procs"); inRoot != "" {
		t.Fatalf("the root cgroup contains processes: %q", inRoot)
	}
	if own := strings.Fields(content(root, ownGroup+"/cgroup.procs")); len(own) != 1 || own[0] != strconv.Itoa(os.Getpid()) {
		t.Fatalf("processes of the container: %q, want %d", own, os.Getpid())
	}
	pods := filepath.Join(root, "keelson")
	if err := errors.Join(os.Mkdir(pods, 0o755), os.Remove(pods)); err != nil {
		t.Fatalf("cannot create a group for pods: %v", err)
	}
	fmt.Println("the root cgroup has no processes")
}

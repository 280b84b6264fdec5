package host

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestWhatIsLeftFails: each kind of thing that a cluster could leave is found, and nothing
// of another cluster.
func TestWhatIsLeftFails(t *testing.T) {
	w, err := Look()
	if err != nil {
		t.Fatal(err)
	}
	w.patience = 0
	home := t.TempDir()
	if err := os.WriteFile(filepath.Join(home, "cluster.json"), []byte(`{"id":"fade01"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	other := t.TempDir()
	cmd := exec.Command("sh", "-c", "sleep 300 # "+other)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	w.Cluster(home)
	if err := w.Check(); err != nil {
		t.Fatalf("nothing is left: %v", err)
	}
	make := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v: %s", name, args, err, out)
		}
	}
	mount := filepath.Join(home, "mount")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	process := exec.Command("sleep", "300")
	process.Env = []string{"KEELSON_CLUSTER=fade01"}
	cgroup := "/sys/fs/cgroup/keelson-fade01"
	if _, err := os.Stat("/sys/fs/cgroup/pids"); err == nil {
		cgroup = "/sys/fs/cgroup/pids/keelson-fade01"
	}
	for _, row := range []struct {
		says       string
		make, take []string
	}{
		{"link ksfade01", []string{"ip", "link", "add", "ksfade01", "type", "bridge"}, []string{"ip", "link", "del", "ksfade01"}},
		{"network namespace keelson-fade01-node-0", []string{"ip", "netns", "add", "keelson-fade01-node-0"}, []string{"ip", "netns", "del", "keelson-fade01-node-0"}},
		{"nftables table ip keelson-fade01", []string{"nft", "add", "table", "ip", "keelson-fade01"}, []string{"nft", "delete", "table", "ip", "keelson-fade01"}},
		{"mount " + mount, []string{"mount", "-t", "tmpfs", "none", mount}, []string{"umount", mount}},
		{"cgroup " + cgroup, []string{"mkdir", cgroup}, []string{"rmdir", cgroup}},
	} {
		make(row.make[0], row.make[1:]...)
		err := w.Check()
		make(row.take[0], row.take[1:]...)
		if err == nil || !strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), other) {
			t.Errorf("%v, want %q", err, row.says)
		}
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	err = w.Check()
	_ = process.Process.Kill()
	_ = process.Wait()
	if err == nil || !strings.Contains(err.Error(), "sleep 300 [KEELSON_CLUSTER=fade01]") {
		t.Errorf("a process is left: %v", err)
	}
	w.patience = time.Minute
	if err := w.Check(); err != nil {
		t.Error(err)
	}
}

// TestOtherClustersAreIgnored: things without a cluster's name count unless they belong to
// another cluster, which may create them while the tests run.
func TestOtherClustersAreIgnored(t *testing.T) {
	dir := t.TempDir()
	other, ours := filepath.Join(dir, "other"), filepath.Join(dir, "ours")
	logs := filepath.Join(dir, "pods", "ns_pod_uid")
	links := filepath.Join(other, "nodes", "node-0", "agent", "log")
	socket := filepath.Join(dir, "socket")
	for _, d := range []string{ours, logs, links} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(logs, filepath.Join(links, "uid")); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	listener.(*net.UnixListener).SetUnlinkOnClose(false)
	mark := func(name string) bool { return strings.Contains(name, ours) }
	if !listens(socket) {
		t.Error("the socket of a running shim counts")
	}
	listener.Close()
	if listens(socket) {
		t.Error("a socket on which no process listens does not count")
	}
	homes := []string{ours, other}
	if file := filepath.Join(logs, "0.log"); !listed(file, homes, mark) {
		t.Error("the log of another cluster's pod counts")
	}
	if file := filepath.Join(dir, "pods", "ns_pod_else", "0.log"); listed(file, homes, mark) {
		t.Error("a log that no cluster lists does not count")
	}
	if file := filepath.Join(logs, "0.log"); listed(file, []string{other}, func(string) bool { return true }) {
		t.Error("a log of the tests' cluster does not count")
	}
	if !inhabited("/proc/self/ns/net") {
		t.Error("the network namespace of a running process counts")
	}
	if inhabited(socket) {
		t.Error("a network namespace without processes does not count")
	}
}

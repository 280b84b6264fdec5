package ha_test

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
)

var rolls = flag.Int("rolls", 2, "how often every process of the control plane is restarted")

// TestRollingRestart restarts one process after the other, the balancers among them,
// under load: no request of the Go client fails, one in 1,000 of kubectl at most, and a
// watch sees every change once.
func TestRollingRestart(t *testing.T) {
	c := start(t)
	l := startUsage(t, c)
	for range *rolls {
		list, err := c.Processes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			began := time.Now()
			kill(t, c, p, syscall.SIGTERM)
			t.Logf("%s was restarted in %s", p.Name, time.Since(began).Round(10*time.Millisecond))
		}
	}
	l.check(t)
}

// previous is the directory with the programs of the commit before, which it builds.
func previous(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("KEELSON_PREVIOUS_BIN"); dir != "" {
		return dir
	}
	cmd := exec.Command("../../scripts/previous.sh")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("build the programs of the commit before: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// install replaces the programs of a directory, each by a rename: a process that runs
// keeps its file.
func install(t *testing.T, into, from string) {
	t.Helper()
	for _, name := range []string{"apiserver", "scheduler", "controller-manager", "cloud-controller", "node", "keel"} {
		data, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		tmp := filepath.Join(into, name+".new")
		if err := os.WriteFile(tmp, data, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(into, name)); err != nil {
			t.Fatal(err)
		}
	}
}

// same reports whether two files have the same content.
func same(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Equal(x, y)
}

// TestUpgrade starts the programs of the commit before, replaces them by the new ones, and
// has `keel up` restart the cluster's processes one by one, under load: old and new
// programs work together meanwhile.
func TestUpgrade(t *testing.T) {
	old := previous(t)
	bin := t.TempDir() // outlives the cluster, which is deleted first
	c := cluster.New(t)
	current := c.Bin
	install(t, bin, old)
	if err := os.Symlink(filepath.Join(current, "runtime"), filepath.Join(bin, "runtime")); err != nil {
		t.Fatal(err)
	}
	c.Bin = bin
	begin(t, c, 3)
	before, err := c.Processes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l := startUsage(t, c)
	l.lone = !slices.ContainsFunc(before, func(p cluster.Process) bool { return p.Name == "balancer-1" })
	install(t, bin, current)
	c.Keel(t, "up")
	after, err := c.Processes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	replaced := 0
	for _, p := range after {
		program := strings.TrimRight(p.Name, "-0123456789")
		if program == "simulator" {
			program = "node"
		}
		if program == "balancer" || same(t, filepath.Join(old, program), filepath.Join(current, program)) {
			continue
		}
		replaced++
		if slices.ContainsFunc(before, func(q cluster.Process) bool { return q.Name == p.Name && q.PID == p.PID }) {
			t.Errorf("%s still runs its old program", p.Name)
		}
	}
	if replaced == 0 {
		t.Error("no program differs from the one before: nothing was upgraded")
	}
	l.check(t)
	peersRefuseOthers(t, c)
}

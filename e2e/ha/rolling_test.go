package ha_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var rolls = flag.Int("rolls", 2, "how often every process of the control plane is restarted")

// restart ends a process by SIGTERM and waits until everything is healthy again,
// with another process of its name.
func (c *controlPlane) restart(p process) {
	c.t.Helper()
	if err := syscall.Kill(p.PID, syscall.SIGTERM); err != nil {
		c.t.Fatalf("SIGTERM of %s: %v", p.Name, err)
	}
	err := until(time.Minute, func() (bool, error) {
		list, err := c.processes()
		if err != nil {
			return false, err
		}
		for _, q := range list {
			if !q.Healthy || q.Name == p.Name && q.PID == p.PID {
				return false, fmt.Errorf("%s, process %d: %s", q.Name, q.PID, q.Reason)
			}
		}
		return true, nil
	})
	if err != nil {
		c.t.Fatalf("after SIGTERM of %s: %v", p.Name, err)
	}
}

// TestRollingRestart restarts one process after the other, the balancers among them,
// under load: no request of the Go client fails, hardly one of kubectl, and a watch
// sees everything once.
func TestRollingRestart(t *testing.T) {
	c := start(t)
	l := startUsage(c)
	for range *rolls {
		list, err := c.processes()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list {
			began := time.Now()
			c.restart(p)
			t.Logf("%s was restarted in %s", p.Name, time.Since(began).Round(10*time.Millisecond))
		}
	}
	l.check(t)
}

// previous is the directory with the programs of the commit before.
func previous(t *testing.T) string {
	t.Helper()
	if dir := os.Getenv("KEELSON_PREVIOUS_BIN"); dir != "" {
		return dir
	}
	cmd := exec.Command("../../scripts/previous.sh")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the programs of the commit before: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// install puts programs into a directory, each in one step: what runs keeps its
// file.
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

// same tells whether two programs are one.
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

// TestUpgrade starts the programs of the commit before, puts the new ones in their
// place, and has `keel up` roll the cluster, under load: old and new ones work side
// by side meanwhile.
func TestUpgrade(t *testing.T) {
	old := previous(t)
	current := binaries(t)
	bin := t.TempDir()
	install(t, bin, old)
	if err := os.Symlink(filepath.Join(current, "runtime"), filepath.Join(bin, "runtime")); err != nil {
		t.Fatal(err)
	}
	c := begin(t, bin, 3)
	before, err := c.processes()
	if err != nil {
		t.Fatal(err)
	}
	l := startUsage(c)
	l.lone = !slices.ContainsFunc(before, func(p process) bool { return p.Name == "balancer-1" })
	install(t, bin, current)
	out, err := c.try("keel", "up", "--home", c.home)
	if err != nil {
		t.Fatalf("keel up: %v\n%s", err, out)
	}
	t.Log(out)
	after, err := c.processes()
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
		if slices.ContainsFunc(before, func(q process) bool { return q.Name == p.Name && q.PID == p.PID }) {
			t.Errorf("%s still runs its old program", p.Name)
		}
	}
	if replaced == 0 {
		t.Error("no program differs from the one before: there is nothing to upgrade from")
	}
	l.check(t)
	peersRefuseOthers(t, c)
}

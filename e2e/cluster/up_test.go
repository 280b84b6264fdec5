package cluster_test

import (
	"strings"
	"testing"
	"time"
)

// TestUp: `keel up` to three Ready nodes, in the time the README promises.
func TestUp(t *testing.T) {
	t.Logf("keel up took %s:\n%s", shared.up, shared.upOutput)
	if shared.up > 10*time.Second {
		t.Errorf("keel up took %s, want 10 s at most", shared.up)
	}
	if ready := strings.Count(kubectl(t, "get", "nodes", "--no-headers"), " Ready "); ready != 3 {
		t.Errorf("%d nodes are Ready, want 3:\n%s", ready, kubectl(t, "get", "nodes", "-o", "wide"))
	}
}

// TestUpAgain: a second `keel up` changes nothing.
func TestUpAgain(t *testing.T) {
	before, err := status()
	if err != nil {
		t.Fatal(err)
	}
	must(t, "keel", "up", "--home", shared.home)
	after, err := status()
	if err != nil {
		t.Fatal(err)
	}
	for i := range before {
		if before[i].PID != after[i].PID {
			t.Errorf("%s was restarted: pid %d, then %d", before[i].Name, before[i].PID, after[i].PID)
		}
	}
}

// TestWrongCalls: one line, what to do, exit code 2.
func TestWrongCalls(t *testing.T) {
	for _, c := range []struct {
		program string
		args    []string
		want    string
	}{
		{"keel", []string{"up", "--nodes", "many"}, "invalid argument"},
		{"keel", []string{"fly"}, "unknown command"},
		{"keel", []string{"trace", "teapot/x"}, "no traces are kept"},
		{"apiserver", []string{"--no-such-flag"}, "no-such-flag"},
		{"scheduler", []string{"--no-such-flag"}, "no-such-flag"},
		{"controller-manager", []string{"--no-such-flag"}, "no-such-flag"},
		{"cloud-controller", []string{"--no-such-flag"}, "no-such-flag"},
		{"node", []string{"--no-such-flag"}, "no-such-flag"},
		{"apiserver", []string{"--identity", shared.home + "/pki/apiserver", "--data-dir", "/proc/nowhere"}, "/proc/nowhere"},
	} {
		cmd := shared.command(c.program, c.args...)
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); err == nil || code != 2 {
			t.Errorf("%s %v: exit code %d, want 2: %s", c.program, c.args, code, out)
		}
		if !strings.Contains(string(out), c.want) || strings.Count(strings.TrimSpace(string(out)), "\n") > 0 {
			t.Errorf("%s %v: want one line with %q, got:\n%s", c.program, c.args, c.want, out)
		}
	}
}

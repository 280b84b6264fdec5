package cluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fake is a cluster whose keel is a script.
func fake(t *testing.T, keel string) *Cluster {
	t.Helper()
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "keel"), []byte("#!/bin/sh\n"+keel), 0o755); err != nil {
		t.Fatal(err)
	}
	return &Cluster{Bin: bin, Home: filepath.Join(t.TempDir(), "home"), Patience: time.Minute, killed: map[string]int{}}
}

func TestTheErrorOfACommandHoldsAllThatItPrinted(t *testing.T) {
	c := fake(t, "cat; echo out; echo err >&2; exit 3\n")
	out, err := c.Feed(t.Context(), "in ", "keel", "fly", "--high")
	if err == nil || out != "in out\n" {
		t.Fatalf("%q, %v", out, err)
	}
	for _, want := range []string{"keel fly --high", "exit status 3", "in out", "err"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not hold %q: %v", want, err)
		}
	}
}

func TestACommandIsBounded(t *testing.T) {
	c := fake(t, "exec sleep 600\n")
	c.Patience = 10 * time.Millisecond
	if _, err := c.Run(t.Context(), "keel"); err == nil || !strings.Contains(err.Error(), "deadline exceeded") {
		t.Errorf("a command that hangs: %v", err)
	}
}

func TestKubectlKeepsNothingOutsideOfTheCluster(t *testing.T) {
	c := fake(t, `[ "$1" = delete ] || mkdir -p "$KUBECACHEDIR/discovery"`+"\n")
	c.Cache = filepath.Join(t.TempDir(), "cache")
	if _, err := c.Run(t.Context(), "keel", "up"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(c.Cache, "discovery")); err != nil {
		t.Errorf("what kubectl keeps is elsewhere: %v", err)
	}
	if err := c.Delete(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(c.Cache); !os.IsNotExist(err) {
		t.Errorf("the cache after the deletion of the cluster: %v", err)
	}
}

func TestHealthyAndReplaced(t *testing.T) {
	c := fake(t, `echo '{"services": [{"name": "apiserver-0", "pid": 7, "healthy": true, "restarts": 1},
		{"name": "node-0", "pid": 8, "reason": "it starts"}]}'`)
	if err := c.Healthy(t.Context(), "apiserver"); err != nil {
		t.Error(err)
	}
	if err := c.Healthy(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "node-0, process 8: it starts") {
		t.Errorf("all processes: %v", err)
	}
	if err := c.Replaced(t.Context(), Process{Name: "apiserver-0", PID: 6}); err == nil || !strings.Contains(err.Error(), "it starts") {
		t.Errorf("while another process is not healthy: %v", err)
	}
	if err := c.Unexpected(t.Context()); err == nil || !strings.Contains(err.Error(), "apiserver-0 was restarted 1 times and killed 0 times") {
		t.Errorf("a process that was restarted by itself: %v", err)
	}
	c = fake(t, `echo '{"services": [{"name": "apiserver-0", "pid": 7, "healthy": true, "restarts": 1}]}'`)
	for pid, want := range map[int]string{6: "", 7: "is still process 7"} {
		if err := c.Replaced(t.Context(), Process{Name: "apiserver-0", PID: pid}); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("process %d: %v, want %q", pid, err, want)
		}
	}
	if err := c.Replaced(t.Context(), Process{Name: "apiserver-1", PID: 6}); err == nil || !strings.Contains(err.Error(), "no process is apiserver-1") {
		t.Errorf("a process that is not there: %v", err)
	}
}

func TestMembers(t *testing.T) {
	c := fake(t, "echo 'NAME ADDRESS ETCD LAG RAFT LAG READY'; echo 'apiserver-0 10.0.0.1:6445 leader 0 voter 0 true'; echo 'apiserver-1 10.0.0.2:6445 voter 3 leader 0 false'\n")
	got, err := c.Members(t.Context())
	want := []Member{{Name: "apiserver-0", Address: "10.0.0.1:6445", Etcd: "leader", Lag: "0", Raft: "voter", Healthy: true},
		{Name: "apiserver-1", Address: "10.0.0.2:6445", Etcd: "voter", Lag: "3", Raft: "leader"}}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func TestDeleteFailsIfSomethingIsLeft(t *testing.T) {
	c := fake(t, "exit 0\n")
	if err := os.MkdirAll(c.Home, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(); err != nil {
		t.Errorf("an empty home: %v", err)
	}
	log := filepath.Join(t.TempDir(), "pod")
	ledger := filepath.Join(c.Home, "nodes", "node-0", "agent", "log")
	if err := os.MkdirAll(ledger, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{filepath.Join(ledger, "pod"), log} { // log itself is a link that leads nowhere
		if err := os.Symlink(log, link); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Delete(); err == nil || !strings.Contains(err.Error(), "left "+log) || !strings.Contains(err.Error(), "left "+c.Home) {
		t.Errorf("a home and a log are left: %v", err)
	}
	c = fake(t, "echo no >&2; exit 1\n")
	if err := c.Delete(); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("keel delete failed: %v", err)
	}
}

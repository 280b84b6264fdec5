package supervise

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

func specs(dir string, names ...string) []Spec {
	var out []Spec
	for i, n := range names {
		out = append(out, Spec{
			Name: n, Args: []string{"/bin/sh", "-c", "exec sleep 300"}, Log: filepath.Join(dir, n+".log"), StopOrder: i,
			Socket: filepath.Join(dir, "none.sock"),
		})
	}
	return out
}

// TestMain runs a supervisor instead of the tests if crashing has set supervisorOf.
func TestMain(m *testing.M) {
	dir := os.Getenv(supervisorOf)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := NewServer(Dir(dir), nil).Run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

const supervisorOf = "SUPERVISE_TEST_DIR"

// crashing runs a supervisor in a separate process. crash kills it, which leaves its children
// running without a supervisor.
func crashing(t *testing.T, dir Dir) (crash func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), supervisorOf+"="+string(dir))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	crash = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(crash)
	poll(t, func() error { _, err := dir.Status(context.Background()); return err })
	return crash
}

// daemon runs a supervisor until it is stopped or end is called.
func daemon(t *testing.T, dir Dir) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- NewServer(dir, func(context.Context, string) error { return nil }).Run(ctx)
	}()
	poll(t, func() error { _, err := dir.Status(ctx); return err })
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("supervisor: %v", err)
		}
	}
}

func poll(t *testing.T, condition func() error) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-tick.C
	}
}

func pids(t *testing.T, dir Dir) map[string]int {
	t.Helper()
	out := map[string]int{}
	list, err := dir.Status(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		out[s.Name] = s.PID
	}
	return out
}

func running(t *testing.T, dir Dir, names ...string) map[string]int {
	t.Helper()
	var got map[string]int
	poll(t, func() error {
		got = pids(t, dir)
		for _, n := range names {
			if got[n] == 0 {
				return fmt.Errorf("%s is not running", n)
			}
		}
		return nil
	})
	return got
}

func TestRestartsWhatDies(t *testing.T) {
	dir := Dir(t.TempDir())
	if err := dir.WriteSpecs(specs(string(dir), "a", "b")); err != nil {
		t.Fatal(err)
	}
	end := daemon(t, dir)
	before := running(t, dir, "a", "b")
	if err := syscall.Kill(before["a"], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	poll(t, func() error {
		if now := pids(t, dir); now["a"] == 0 || now["a"] == before["a"] {
			return fmt.Errorf("a has pid %d, had %d", now["a"], before["a"])
		} else if now["b"] != before["b"] {
			t.Fatalf("b was restarted")
		}
		return nil
	})
	if err := dir.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	end()
	if dir.AnyAlive() {
		t.Error("a process is still running after stop")
	}
}

func TestAdoptsWhatAPredecessorLeft(t *testing.T) {
	dir := Dir(t.TempDir())
	if err := dir.WriteSpecs(specs(string(dir), "a", "b")); err != nil {
		t.Fatal(err)
	}
	crash := crashing(t, dir)
	before := running(t, dir, "a", "b")
	crash()
	if !dir.AnyAlive() {
		t.Fatal("the processes ended with their supervisor")
	}
	// b gets other arguments, so only b is restarted.
	changed := specs(string(dir), "a", "b")
	changed[1].Args = []string{"/bin/sh", "-c", "exec sleep 301"}
	if err := dir.WriteSpecs(changed); err != nil {
		t.Fatal(err)
	}
	end := daemon(t, dir)
	poll(t, func() error {
		now := pids(t, dir)
		if now["a"] != before["a"] {
			return fmt.Errorf("a has pid %d, want the adopted %d", now["a"], before["a"])
		}
		if now["b"] == 0 || now["b"] == before["b"] {
			return fmt.Errorf("b has pid %d, want a new one", now["b"])
		}
		return nil
	})
	if err := dir.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	end()
	if dir.AnyAlive() {
		t.Error("an adopted process is still running after stop")
	}
}

func TestReusedPIDIsNotAdopted(t *testing.T) {
	start, ok := startTime(os.Getpid())
	if !ok {
		t.Fatal("cannot read the start time of this process")
	}
	if !alive(record{PID: os.Getpid(), Start: start}) || alive(record{PID: os.Getpid(), Start: start + 1}) {
		t.Error("a pid must count only with its start time")
	}
}

func TestOneSupervisorADirectory(t *testing.T) {
	dir := Dir(t.TempDir())
	end := daemon(t, dir)
	defer end()
	if err := NewServer(dir, nil).Run(context.Background()); err == nil {
		t.Error("a second supervisor ran in the same directory")
	}
}

func TestWarnings(t *testing.T) {
	body := "[+]ping ok\n[+]leadership ok: standby\n[+]lasting-space ok: warning: the store is full\nreadyz check passed\n"
	if got, want := warned(body), "the store is full"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestFailedChecks(t *testing.T) {
	body := "[+]ping ok\n[-]store failed: no leader\n[-]cache failed: not yet\nreadyz check failed\n"
	if got, want := failedChecks(body), "store failed: no leader; cache failed: not yet"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

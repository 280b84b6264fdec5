package raft

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	hraft "github.com/hashicorp/raft"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// TestADiskThatFailsEndsTheMember makes writes to a member's log file fail. A follower that cut
// its log and could not append would continue with a log shorter than the one it acknowledged. One whose
// append was reported as failed but is on disk would keep entries behind those of a later term,
// and would vote according to them after a restart.
func TestADiskThatFailsEndsTheMember(t *testing.T) {
	dir := t.TempDir()
	l, err := openLog(dir, bbolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	l.failed = func(err error) { failed = err }
	entry := func(index uint64) []*hraft.Log { return []*hraft.Log{{Index: index, Term: 1, Data: []byte("x")}} }
	if err := l.StoreLogs(entry(1)); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
	full(t, filepath.Join(dir, "log.db"))
	for what, write := range map[string]func() error{
		"an entry": func() error { return l.StoreLogs(entry(2)) },
		"a cut":    func() error { return l.DeleteRange(1, 1) },
		"a vote":   func() error { return l.Set([]byte(keyVoteCandidate), []byte("x")) },
	} {
		failed = nil
		if err := write(); !errors.Is(err, unix.ENOSPC) || !errors.Is(failed, unix.ENOSPC) {
			t.Errorf("%s: %v; reported to the member: %v", what, err, failed)
		}
	}
	_ = l.close()
	failed = nil
	if err := l.StoreLogs(entry(3)); err == nil || failed != nil {
		t.Errorf("closed log: %v; reported to the member: %v", err, failed)
	}
}

// full makes every write through this process's file descriptor of path fail with ENOSPC.
func full(t *testing.T, path string) {
	t.Helper()
	device, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		var fd int
		if target, err := os.Readlink("/proc/self/fd/" + d.Name()); err != nil || target != path {
			continue
		}
		if _, err := fmt.Sscan(d.Name(), &fd); err != nil {
			t.Fatal(err)
		}
		if err := unix.Dup3(int(device.Fd()), fd, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatalf("%s is not open", path)
}

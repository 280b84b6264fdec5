package command

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"testing"

	"keelson.dev/tools/keel/internal/cluster"
)

// Each of these commands would write while an up is running, or an up would start what they are
// writing.
func TestChangesOfDataTakeTheLock(t *testing.T) {
	c := home(t, "00000a", func(c *cluster.Cluster) {
		c.Members = []cluster.Member{{Name: "apiserver-0"}, {Name: "apiserver-1"}}
	})
	first := &env{home: c.Home, err: &bytes.Buffer{}}
	unlock, err := first.alone(t.Context(), c.Home)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	e := &env{home: c.Home, out: &bytes.Buffer{}, err: &bytes.Buffer{}}
	for what, do := range map[string]func(context.Context) error{
		"snapshot restore": func(ctx context.Context) error { return e.restore(ctx, "file", "", 0, true) },
		"member recover": func(ctx context.Context) error {
			return (&members{remote: remote{env: e}}).recoverFrom(ctx, "apiserver-0")
		},
	} {
		said := &bytes.Buffer{}
		e.err = said
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := do(ended); !errors.Is(err, context.Canceled) || !bytes.Contains(said.Bytes(), []byte("waiting for another")) {
			t.Errorf("%s: %v, %q", what, err, said)
		}
	}
}

// A program that writes a home's data continues when keel is killed; the next keel must wait.
func TestTheLockOutlivesKeel(t *testing.T) {
	e := &env{home: t.TempDir(), err: &bytes.Buffer{}}
	unlock, err := e.alone(t.Context(), e.home)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	e.share(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	unlock() // as when the process ends
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.alone(ended, e.home); !errors.Is(err, context.Canceled) {
		t.Errorf("the lock is free although the program is still running: %v", err)
	}
	if err := errors.Join(stdin.Close(), cmd.Wait()); err != nil {
		t.Fatal(err)
	}
	again, err := e.alone(t.Context(), e.home)
	if err != nil {
		t.Fatal(err)
	}
	again()
}

package supervise

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A node's pods are stopped with it while its runtime still answers. Those of a node that only
// restarts keep running.
func TestWhoGoesTakesItsPodsAlong(t *testing.T) {
	dir := Dir(t.TempDir())
	all := specs(string(dir), "node-0", "node-1", "containerd-1")
	all[0].StopOrder, all[1].StopOrder, all[2].StopOrder = 0, 0, 1
	all[0].Sandboxes, all[1].Sandboxes = "zero.sock", "one.sock"
	if err := dir.WriteSpecs(all); err != nil {
		t.Fatal(err)
	}
	var stopped []string
	ctx, cancel := context.WithCancel(context.Background())
	server := NewServer(dir, func(_ context.Context, socket string) error {
		stopped = append(stopped, socket)
		if socket != "one.sock" {
			return nil
		}
		for name, runs := range map[string]bool{"node-1": false, "containerd-1": true} {
			if _, err := os.Stat(filepath.Join(string(dir), name+".pid")); (err == nil) != runs {
				t.Errorf("pods are stopped while %s is running: %t", name, !runs)
			}
		}
		return errors.New("one of them could not be stopped")
	})
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	poll(t, func() error {
		list, err := dir.Status(ctx)
		if err == nil && slices.ContainsFunc(list, func(s Status) bool { return s.PID == 0 }) {
			err = errors.New("not all are running")
		}
		return err
	})
	changed := slices.Clone(all[:1])
	changed[0].Env = []string{"X=1"}
	if err := dir.WriteSpecs(changed); err != nil {
		t.Fatal(err)
	}
	if err := dir.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(stopped, []string{"one.sock"}) {
		t.Errorf("pods were stopped at %v", stopped)
	}
	if list, err := dir.Status(ctx); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	poll(t, func() error {
		list, err := dir.Status(ctx)
		if err == nil && (len(list) != 1 || list[0].PID == 0) {
			err = errors.New("the changed process is not running")
		}
		return err
	})
	if err := dir.Stop(ctx); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

package supervise

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
)

// Ensure during a stop must not let the supervisor that is ending start the processes. It waits
// and starts a new supervisor.
func TestASupervisorThatStopsIsSucceeded(t *testing.T) {
	dir := Dir(t.TempDir())
	all := specs(string(dir), "a")
	all[0].Sandboxes = "a.sock"
	if err := dir.WriteSpecs(all); err != nil {
		t.Fatal(err)
	}
	stopping, goOn := make(chan struct{}), make(chan struct{})
	ran := make(chan error, 1)
	go func() {
		ran <- NewServer(dir, func(context.Context, string) error {
			close(stopping)
			<-goOn
			return nil
		}).Run(context.Background())
	}()
	poll(t, func() error { _, err := dir.Status(t.Context()); return err })
	before := running(t, dir, "a")
	stopped := make(chan error, 1)
	go func() { stopped <- dir.Stop(context.Background()) }()
	<-stopping
	all[0].Sandboxes = ""
	if err := dir.WriteSpecs(all); err != nil {
		t.Fatal(err)
	}
	t.Setenv(supervisorOf, string(dir))
	ensured := make(chan error, 1)
	go func() {
		ensured <- dir.Ensure(context.Background(), filepath.Join(string(dir), "supervisor.log"), "/proc/self/exe")
	}()
	close(goOn)
	for _, c := range []chan error{ran, ensured} {
		if err := <-c; err != nil {
			t.Fatal(err)
		}
	}
	if now := running(t, dir, "a"); now["a"] == before["a"] {
		t.Errorf("process %d was stopped but is still running", now["a"])
	}
	if err := dir.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestNothingStartsAfterAStop(t *testing.T) {
	dir := Dir(t.TempDir())
	if err := dir.WriteSpecs(specs(string(dir), "a")); err != nil {
		t.Fatal(err)
	}
	s := NewServer(dir, nil)
	if err := errors.Join(s.reload(), s.stop(t.Context())); err != nil {
		t.Fatal(err)
	}
	if err := s.reload(); !errors.Is(err, errStopping) || len(s.procs) > 0 {
		t.Errorf("%d processes started after a stop: %v", len(s.procs), err)
	}
}

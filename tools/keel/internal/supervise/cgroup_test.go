package supervise

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"keelson.dev/tools/keel/internal/cgroup"
)

// Processes that a process has started are found by its cgroup, even after it has ended.
func TestProcessesStartInTheirCgroups(t *testing.T) {
	dir := Dir(t.TempDir())
	group := fmt.Sprintf("/keelson-%06x/keel/daemon", rand.IntN(1<<24))
	spec := specs(string(dir), "daemon")[0]
	spec.Args, spec.Cgroup = []string{"/bin/sh", "-c", "setsid sleep 300 & wait"}, group
	if err := dir.WriteSpecs([]Spec{spec}); err != nil {
		t.Fatal(err)
	}
	end := daemon(t, dir)
	defer end()
	poll(t, func() error {
		list, err := dir.Status(context.Background())
		if err != nil {
			return err
		}
		pids, err := cgroup.Processes(cgroup.Host.Below(group)...)
		if err == nil && (len(pids) != 2 || !slices.Contains(pids, list[0].PID)) {
			err = fmt.Errorf("its cgroup contains %v; its pid is %d", pids, list[0].PID)
		}
		return err
	})
	if err := dir.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	pids, err := cgroup.Processes(cgroup.Host.Below(group)...)
	if err != nil || len(pids) != 1 {
		t.Errorf("the processes that it started are %v, %v; want one", pids, err)
	}
	poll(t, func() error {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		var errs []error
		for _, root := range cgroup.Host.Below(filepath.Dir(filepath.Dir(group))) {
			errs = append(errs, cgroup.Remove(root))
		}
		return errors.Join(errs...)
	})
}

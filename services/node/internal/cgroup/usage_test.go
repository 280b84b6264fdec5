package cgroup

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"
)

// put writes files of cgroups below dir.
func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestUsage(t *testing.T) {
	v2, v1 := t.TempDir(), t.TempDir()
	put(t, v2, map[string]string{
		"keelson/podx/cpu.stat":            "usage_usec 1500000\nuser_usec 1\nnr_periods 7\nnr_throttled 3\nthrottled_usec 20\n",
		"keelson/podx/memory.current":      "10000\n",
		"keelson/podx/memory.max":          "max\n",
		"keelson/podx/memory.stat":         "anon 4000\nfile 5000\ninactive_file 3000\npgfault 9\npgmajfault 2\n",
		"keelson/podx/pids.current":        "4\n",
		"keelson/podx/c1/cgroup.procs":     "123\n124\n",
		"keelson/podx/c2/cgroup.procs":     "",
		"keelson/podx/cgroup.procs":        "",
		"keelson/podbroken/cpu.stat":       "usage_usec none\n",
		"keelson/podbroken/memory.current": "lots\n",
	})
	put(t, v1, map[string]string{
		"cpuacct/keelson/podx/cpuacct.usage":         "1500000000\n",
		"cpu/keelson/podx/cpu.stat":                  "nr_periods 7\nnr_throttled 3\nthrottled_time 20000\n",
		"memory/keelson/podx/memory.usage_in_bytes":  "10000\n",
		"memory/keelson/podx/memory.limit_in_bytes":  "9223372036854771712\n",
		"memory/keelson/podx/memory.stat":            "cache 1\nrss 1\ntotal_cache 5000\ntotal_rss 4000\ntotal_inactive_file 3000\ntotal_pgfault 9\ntotal_pgmajfault 2\n",
		"memory/keelson/podx/c1/cgroup.procs":        "123\n",
		"memory/keelson/podx/c2/cgroup.procs":        "",
		"pids/keelson/podx/pids.current":             "4\n",
		"memory/keelson/podbroken/memory.stat":       "",
		"cpuacct/keelson/podbroken/cpuacct.usage":    "7\n",
		"memory/keelson/podbroken/unrelated":         "",
		"cpu/keelson/podbroken/cpu.stat":             "",
		"memory/keelson/podx/memory.use_hierarchy":   "1\n",
		"memory/keelson/podx/memory.oom_control":     "",
		"memory/keelson/podx/memory.kmem.usage_byte": "",
	})
	want := Usage{
		CPU:    CPU{Used: 1500 * time.Millisecond, Periods: 7, ThrottledPeriods: 3, Throttled: 20 * time.Microsecond},
		Memory: Memory{Usage: 10000, WorkingSet: 7000, RSS: 4000, Cache: 5000, Faults: 9, MajorFaults: 2},
		PIDs:   4,
	}
	for name, h := range map[string]*Hierarchy{
		"v2": {root: "/keelson", unified: v2},
		"v1": {root: "/keelson", v1: map[string]string{"cpu": v1 + "/cpu", "cpuacct": v1 + "/cpuacct", "memory": v1 + "/memory", "pids": v1 + "/pids"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := h.Usage("/keelson/podx")
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%+v, %v, want %+v", got, err, want)
			}
			if cpu, err := h.CPU("/keelson/podx"); err != nil || cpu.Used != want.CPU.Used {
				t.Errorf("CPU: %+v, %v", cpu, err)
			}
			list, err := h.Containers("/keelson/podx")
			slices.Sort(list)
			if err != nil || !slices.Equal(list, []string{"c1", "c2"}) {
				t.Errorf("containers: %v, %v", list, err)
			}
			if list, err := h.Containers("/keelson/podgone"); err != nil || list != nil {
				t.Errorf("containers of a pod that is gone: %v, %v", list, err)
			}
			if pid := h.Process("/keelson/podx/c1"); pid != 123 {
				t.Errorf("process %d", pid)
			}
			if pid := h.Process("/keelson/podx/c2"); pid != 0 {
				t.Errorf("process %d of an empty cgroup", pid)
			}
			if _, err := h.Usage("/keelson/podgone"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("usage of a pod that is gone: %v", err)
			}
			if _, err := h.Usage("/keelson/podbroken"); err == nil {
				t.Error("a usage that is no number was accepted")
			}
		})
	}
}

func TestMachineUsage(t *testing.T) {
	dir := t.TempDir()
	h := &Hierarchy{root: "/keelson", unified: dir}
	put(t, dir, map[string]string{"cpu.stat": "usage_usec 5\n"})
	if u, bounded, err := h.Machine(); err != nil || bounded || u.CPU.Used != 5*time.Microsecond {
		t.Errorf("root of the machine: %+v, %v, %v", u, bounded, err)
	}
	put(t, dir, map[string]string{"memory.current": "8\n", "memory.max": "16\n", "memory.stat": "inactive_file 3\n"})
	if u, bounded, err := h.Machine(); err != nil || !bounded || u.Memory.WorkingSet != 5 || u.Memory.Limit != 16 {
		t.Errorf("a container's root: %+v, %v, %v", u, bounded, err)
	}
}

package install_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// cost is what the processes of a control plane take.
type cost struct {
	pss int64 // bytes
	cpu time.Duration
}

// tick is the unit of CPU times in /proc (USER_HZ).
const tick = 10 * time.Millisecond

// costs adds up the processes of each release by program, from /proc.
func costs(t *testing.T, namespace string) map[string]cost {
	t.Helper()
	pids, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]cost{}
	for _, path := range pids {
		line, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(line), "."+namespace+".svc.") {
			continue
		}
		program, _, _ := strings.Cut(string(line), "\x00")
		dir := filepath.Dir(path)
		c := out[filepath.Base(program)]
		rollup, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(rollup)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
				kib, _ := strconv.ParseInt(f[1], 10, 64)
				c.pss += kib << 10
			}
		}
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, i := range []int{11, 12} { // utime and stime
			n, _ := strconv.ParseInt(f[i], 10, 64)
			c.cpu += time.Duration(n) * tick
		}
		out[filepath.Base(program)] = c
	}
	return out
}

// TestDensity installs many control planes of one apiserver, two at a time, and reports what each
// costs: the time from `helm install` to the end of its last hook, memory, and CPU time while nobody
// uses them.
func TestDensity(t *testing.T) {
	if *count == 0 {
		return // it is asked for
	}
	outer.Patience = 5 * time.Minute
	outer.Kubectl(t, "create", "namespace", "many")
	outer.Shows(t, time.Minute, "default", "-n", "many", "get", "serviceaccount")
	took := make([]time.Duration, *count)
	next := make(chan int)
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for i := range next {
				began := time.Now()
				if _, err := outer.Run(t.Context(), *helmProgram, "install", fmt.Sprintf("r%d", i), chart, "--namespace", "many", "--timeout", "120s"); err != nil {
					t.Error(err)
				}
				took[i] = time.Since(began)
			}
		})
	}
	for i := range *count {
		next <- i
	}
	close(next)
	all.Wait()
	slices.Sort(took)
	at := func(p int) time.Duration { return took[min(len(took)*p/100, len(took)-1)].Round(10 * time.Millisecond) }
	t.Logf("%d control planes, ready after p50 %s, p99 %s, at most %s", *count, at(50), at(99), took[len(took)-1].Round(10*time.Millisecond))
	outer.Kubectl(t, "-n", "many", "wait", "--for=condition=Ready", "pods", "--all", "--timeout=120s")
	<-time.After(*idle / 4) // what starting them left over
	before := costs(t, "many")
	began := time.Now()
	<-time.After(*idle)
	after, elapsed := costs(t, "many"), time.Since(began)
	var pss, milli float64
	for _, program := range []string{"apiserver", "scheduler", "controller-manager", "cloud-controller", "node"} {
		m := float64(after[program].pss) / float64(*count) / (1 << 20)
		c := 1000 * (after[program].cpu - before[program].cpu).Seconds() / elapsed.Seconds() / float64(*count)
		t.Logf("%-20s %6.1f MiB PSS, %5.2f mCPU", program, m, c)
		pss, milli = pss+m, milli+c
	}
	t.Logf("%-20s %6.1f MiB PSS, %5.2f mCPU each", "control plane", pss, milli)
	for i := range *count {
		if _, err := outer.Run(t.Context(), *helmProgram, "uninstall", fmt.Sprintf("r%d", i), "--namespace", "many"); err != nil {
			t.Error(err)
		}
	}
}

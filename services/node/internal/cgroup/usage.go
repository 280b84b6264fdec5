package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what the processes of a cgroup and its descendants have used.
type Usage struct {
	CPU    CPU
	Memory Memory
	// PIDs is the number of processes and threads, 0 if they are not counted.
	PIDs uint64
}

// CPU is the CPU time of a cgroup since it was created.
type CPU struct {
	Used time.Duration
	// Periods is the number of enforcement periods of the CPU limit, ThrottledPeriods those in
	// which the limit was reached, and Throttled the time that processes waited for the next.
	Periods, ThrottledPeriods uint64
	Throttled                 time.Duration
}

// Memory is the memory of a cgroup, in bytes.
type Memory struct {
	// Usage includes the page cache; WorkingSet is Usage without the inactive part of it; RSS
	// is anonymous memory alone.
	Usage, WorkingSet, RSS, Cache uint64
	// Limit is 0 if there is none.
	Limit uint64
	// Faults and MajorFaults are counted since the cgroup was created.
	Faults, MajorFaults uint64
}

// unlimited is the smallest limit of memory that means none: cgroup v1 reports the largest
// number of whole pages.
const unlimited = 1 << 62

// Containers returns the names of the cgroups in a pod's cgroup, which are the IDs of its
// sandboxes and containers. It returns none if the pod's cgroup does not exist.
func (h *Hierarchy) Containers(group string) ([]string, error) {
	dir, err := os.Open(h.dir("memory", group))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", group, err)
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", group, err)
	}
	var out []string
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// Usage reads what a cgroup uses. The error satisfies errors.Is(err, fs.ErrNotExist) if there
// is no such cgroup.
func (h *Hierarchy) Usage(group string) (Usage, error) {
	var u Usage
	var err error
	if u.CPU, err = h.CPU(group); err != nil {
		return u, err
	}
	if h.v1 != nil {
		h.throttling("cpu", group, &u.CPU)
	}
	if u.Memory, err = h.Memory(group); err != nil {
		return u, err
	}
	u.PIDs, _ = h.number("pids", group, "pids.current") // the root counts none
	return u, nil
}

// CPU reads the CPU time of a cgroup, which is one small file.
func (h *Hierarchy) CPU(group string) (CPU, error) {
	var c CPU
	if h.Unified() {
		err := h.throttling("", group, &c)
		return c, err
	}
	n, err := h.number("cpuacct", group, "cpuacct.usage")
	c.Used = time.Duration(n)
	return c, err
}

// throttling reads cpu.stat: with v2, it includes the CPU time.
func (h *Hierarchy) throttling(controller, group string, c *CPU) error {
	return h.fields(controller, group, "cpu.stat", func(key []byte, n uint64) {
		switch string(key) {
		case "usage_usec":
			c.Used = time.Duration(n) * time.Microsecond
		case "nr_periods":
			c.Periods = n
		case "nr_throttled":
			c.ThrottledPeriods = n
		case "throttled_usec":
			c.Throttled = time.Duration(n) * time.Microsecond
		case "throttled_time":
			c.Throttled = time.Duration(n)
		}
	})
}

// Memory reads the memory of a cgroup. The error satisfies errors.Is(err, fs.ErrNotExist) if
// there is no such cgroup.
func (h *Hierarchy) Memory(group string) (Memory, error) {
	var m Memory
	var inactive uint64
	usage, limit, prefix, rss, cache := "memory.usage_in_bytes", "memory.limit_in_bytes", "total_", "total_rss", "total_cache"
	if h.Unified() {
		usage, limit, prefix, rss, cache = "memory.current", "memory.max", "", "anon", "file"
	}
	var err error
	if m.Usage, err = h.number("memory", group, usage); err != nil {
		return m, err
	}
	if n, err := h.number("memory", group, limit); err == nil && n < unlimited {
		m.Limit = n
	}
	err = h.fields("memory", group, "memory.stat", func(key []byte, n uint64) {
		switch string(key) {
		case rss:
			m.RSS = n
		case cache:
			m.Cache = n
		case prefix + "inactive_file":
			inactive = n
		case prefix + "pgfault":
			m.Faults = n
		case prefix + "pgmajfault":
			m.MajorFaults = n
		}
	})
	m.WorkingSet = m.Usage - min(inactive, m.Usage)
	return m, err
}

// Process returns a process of a cgroup, or 0 if it has none.
func (h *Hierarchy) Process(group string) int {
	b, err := os.ReadFile(filepath.Join(h.dir("memory", group), "cgroup.procs"))
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	pid, _ := strconv.Atoi(line)
	return pid
}

// Machine reads what the mounted root of the cgroups uses. bounded is false if that is the
// whole machine, whose memory cgroups do not count exactly: read /proc/meminfo instead.
func (h *Hierarchy) Machine() (u Usage, bounded bool, err error) {
	if h.Unified() {
		if _, err := os.Stat(filepath.Join(h.unified, "memory.current")); err == nil {
			u, err := h.Usage("/")
			return u, true, err
		}
	}
	u.CPU, err = h.CPU("/")
	return u, false, err
}

// dir returns the directory of a cgroup in a controller's hierarchy.
func (h *Hierarchy) dir(controller, group string) string {
	if h.Unified() {
		return path.Join(h.unified, group)
	}
	return path.Join(h.v1[controller], group)
}

// number reads a file that holds one number. "max" is the largest.
func (h *Hierarchy) number(controller, group, file string) (uint64, error) {
	b, err := h.read(controller, group, file)
	if err != nil {
		return 0, err
	}
	text := string(bytes.TrimSpace(b))
	if text == "max" {
		return 1<<64 - 1, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("cgroup %s: %s: %w", group, file, err)
	}
	return n, nil
}

// fields calls f for each line "key number" of a file.
func (h *Hierarchy) fields(controller, group, file string, f func(key []byte, n uint64)) error {
	b, err := h.read(controller, group, file)
	if err != nil {
		return err
	}
	for line := range bytes.Lines(b) {
		key, value, ok := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(string(value), 10, 64); err == nil {
			f(key, n)
		}
	}
	return nil
}

func (h *Hierarchy) read(controller, group, file string) ([]byte, error) {
	if h.v1 != nil && h.v1[controller] == "" {
		return nil, fmt.Errorf("cgroup %s: the %s controller is not mounted", group, controller)
	}
	b, err := os.ReadFile(path.Join(h.dir(controller, group), file))
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", group, err)
	}
	return b, nil
}

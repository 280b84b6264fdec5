package usage

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// machine reads the machine, except for its CPU rate and image file system.
func (m *Meter) machine(now time.Time) (Node, error) {
	n := Node{Time: now, Start: m.boot}
	group, bounded, err := m.cfg.Groups.Machine()
	if err != nil {
		return n, fmt.Errorf("usage of the machine: %w", err)
	}
	n.CPU = cpu(group.CPU)
	if n.Memory, err = MachineMemory(); err != nil {
		return n, fmt.Errorf("usage of the machine: %w", err)
	}
	if err := n.Memory.readFaults(); err != nil {
		return n, fmt.Errorf("usage of the machine: %w", err)
	}
	if bounded {
		capacity := n.Memory.Limit
		if n.Memory = memory(group.Memory); n.Memory.Limit == 0 || n.Memory.Limit > capacity {
			n.Memory.Limit = capacity
			n.Memory.Available = capacity - min(n.Memory.WorkingSet, capacity)
		}
	}
	n.Network = network("/proc/self/net")
	if n.FS, err = statfs(m.cfg.Dir); err != nil {
		return n, fmt.Errorf("usage of the machine: %w", err)
	}
	n.PIDs, n.MaxPIDs = Processes()
	return n, nil
}

// MachineMemory reads the memory of the whole machine. Available is its capacity without the
// working set, as the kubelet computes it. Faults are not read.
func MachineMemory() (Memory, error) {
	var m Memory
	var total, free, inactive uint64
	if err := fields("/proc/meminfo", func(key string, n uint64) {
		switch key {
		case "MemTotal":
			total = n << 10
		case "MemFree":
			free = n << 10
		case "Inactive(file)":
			inactive = n << 10
		case "AnonPages":
			m.RSS = n << 10
		case "Cached":
			m.Cache = n << 10
		}
	}); err != nil {
		return m, err
	}
	m.Usage = total - min(free, total)
	m.WorkingSet = m.Usage - min(inactive, m.Usage)
	m.Limit, m.Available = total, total-m.WorkingSet
	return m, nil
}

// readFaults reads the page faults of the whole machine.
func (m *Memory) readFaults() error {
	return fields("/proc/vmstat", func(key string, n uint64) {
		switch key {
		case "pgfault":
			m.PageFaults = n
		case "pgmajfault":
			m.MajorPageFaults = n
		}
	})
}

// fields calls f for each line of a file that begins with a name and a number.
func fields(file string, f func(key string, n uint64)) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for line := range bytes.Lines(b) {
		words := bytes.Fields(line)
		if len(words) < 2 {
			continue
		}
		if n, err := strconv.ParseUint(string(words[1]), 10, 64); err == nil {
			f(strings.TrimSuffix(string(words[0]), ":"), n)
		}
	}
	return nil
}

// Processes returns the number of the machine's processes and threads, and the limit; 0 if
// they cannot be read.
func Processes() (now, most uint64) {
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		if words := strings.Fields(string(b)); len(words) > 3 {
			_, all, _ := strings.Cut(words[3], "/")
			now, _ = strconv.ParseUint(all, 10, 64)
		}
	}
	for _, file := range []string{"/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err == nil && (most == 0 || n < most) {
			most = n
		}
	}
	return now, most
}

// bootTime returns when the machine was booted, or the zero time.
func bootTime() time.Time {
	var boot time.Time
	_ = fields("/proc/stat", func(key string, n uint64) {
		if key == "btime" {
			boot = time.Unix(int64(n), 0)
		}
	})
	return boot
}

func statfs(path string) (FS, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return FS{}, fmt.Errorf("%s: %w", path, err)
	}
	size := uint64(s.Bsize)
	return FS{
		Capacity: s.Blocks * size, Available: s.Bavail * size, Used: (s.Blocks - s.Bfree) * size,
		Inodes: s.Files, InodesFree: s.Ffree, InodesUsed: s.Files - s.Ffree,
	}, nil
}

// network reads the interfaces of a network namespace, except for the loopback interface and
// the host's ends of pods' links. dir is the "net" directory of a process. The result is empty
// if the process has ended.
func network(dir string) Network {
	var n Network
	f, err := os.Open(dir + "/dev")
	if err != nil {
		return n
	}
	defer f.Close()
	scanner := bufio.NewScanner(f)
	for scanner.Scan() {
		name, rest, ok := strings.Cut(scanner.Text(), ":")
		words := strings.Fields(rest)
		if name = strings.TrimSpace(name); !ok || len(words) < 12 || name == "lo" || strings.HasPrefix(name, "veth") {
			continue
		}
		var v [12]uint64
		for i := range v {
			v[i], _ = strconv.ParseUint(words[i], 10, 64)
		}
		n.Interfaces = append(n.Interfaces, Interface{
			Name:    name,
			RxBytes: v[0], RxPackets: v[1], RxErrors: v[2], RxDropped: v[3],
			TxBytes: v[8], TxPackets: v[9], TxErrors: v[10], TxDropped: v[11],
		})
	}
	n.Default = defaultInterface(dir)
	if n.Default == "" && len(n.Interfaces) > 0 {
		n.Default = n.Interfaces[0].Name
	}
	return n
}

// defaultInterface returns the interface of the IPv4 default route.
func defaultInterface(dir string) string {
	b, err := os.ReadFile(dir + "/route")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		if words := strings.Fields(line); len(words) > 7 && words[1] == "00000000" && words[7] == "00000000" {
			return words[0]
		}
	}
	return ""
}

package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Capacity returns the container's resource limits that are below the machine's capacity, in
// the form of --capacity: "cpu=1500m", "memory=2147483648". It returns nothing if there are no
// limits.
func Capacity() []string { return capacity(cgroupRoot) }

func capacity(root string) []string {
	var out []string
	quota, period := number(root, "cpu/cpu.cfs_quota_us"), number(root, "cpu/cpu.cfs_period_us")
	if f := strings.Fields(content(root, "cpu.max")); len(f) == 2 {
		quota, _ = strconv.ParseInt(f[0], 10, 64) // "max" means no limit and parses as 0
		period, _ = strconv.ParseInt(f[1], 10, 64)
	}
	if quota > 0 && period > 0 {
		out = append(out, fmt.Sprintf("cpu=%dm", quota*1000/period))
	}
	limit := max(number(root, "memory/memory.limit_in_bytes"), number(root, "memory.max"))
	// cgroup v1 represents "no limit" by the largest multiple of the page size.
	if limit > 0 && limit < 1<<60 {
		out = append(out, fmt.Sprintf("memory=%d", limit))
	}
	return out
}

// content returns a file's text without surrounding space, or "" if the file cannot be read.
func content(root, file string) string {
	data, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// number returns the number in a file, or 0 if there is none.
func number(root, file string) int64 {
	n, _ := strconv.ParseInt(content(root, file), 10, 64)
	return n
}

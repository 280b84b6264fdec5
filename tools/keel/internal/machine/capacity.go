package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Capacity is what the container may use where that is less than the machine has,
// as --capacity takes it: "cpu=1500m", "memory=2147483648". Empty without limits.
func Capacity() []string { return capacity(cgroupRoot) }

func capacity(root string) []string {
	var out []string
	quota, period := number(root, "cpu/cpu.cfs_quota_us"), number(root, "cpu/cpu.cfs_period_us")
	if f := strings.Fields(content(root, "cpu.max")); len(f) == 2 {
		quota, _ = strconv.ParseInt(f[0], 10, 64) // "max" is none
		period, _ = strconv.ParseInt(f[1], 10, 64)
	}
	if quota > 0 && period > 0 {
		out = append(out, fmt.Sprintf("cpu=%dm", quota*1000/period))
	}
	limit := max(number(root, "memory/memory.limit_in_bytes"), number(root, "memory.max"))
	// v1 writes "no limit" as the largest multiple of a page.
	if limit > 0 && limit < 1<<60 {
		out = append(out, fmt.Sprintf("memory=%d", limit))
	}
	return out
}

func content(root, file string) string {
	data, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// number is a file's; 0 where there is none.
func number(root, file string) int64 {
	n, _ := strconv.ParseInt(content(root, file), 10, 64)
	return n
}

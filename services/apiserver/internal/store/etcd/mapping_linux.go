package etcd

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// mapping is a range of this process's memory.
type mapping struct{ from, to uintptr }

// mappingsOf returns the ranges to which a file is mapped.
func mappingsOf(path string) ([]mapping, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	inode := strconv.FormatUint(st.Sys().(*syscall.Stat_t).Ino, 10)
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []mapping
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// from-to perms offset device inode path. A file with the same inode on another file
		// system has another name.
		c := strings.Fields(lines.Text())
		if len(c) < 6 || c[4] != inode || !strings.HasSuffix(c[5], "/db") || !strings.HasPrefix(c[1], "r--s") {
			continue
		}
		var m mapping
		if _, err := fmt.Sscanf(c[0], "%x-%x", &m.from, &m.to); err != nil {
			return nil, fmt.Errorf("/proc/self/maps: %q: %w", lines.Text(), err)
		}
		out = append(out, m)
	}
	return out, lines.Err()
}

// giveBack advises the kernel that the pages of a file's mappings are not needed at present. They
// stay in the page cache, and are mapped again when they are read.
func giveBack(path string) error {
	ranges, err := mappingsOf(path)
	if err != nil {
		return err
	}
	for _, m := range ranges {
		if _, _, errno := syscall.Syscall(syscall.SYS_MADVISE, m.from, m.to-m.from, syscall.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("madvise: %w", errno)
		}
	}
	return nil
}

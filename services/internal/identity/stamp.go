package identity

import (
	"os"
	"path/filepath"
	"syscall"
)

// stamp identifies a state of the files: a file that was replaced has another inode, one that
// was rewritten another time or size.
type stamp [3]struct {
	inode       uint64
	size, mtime int64
}

func stampOf(dir string) (stamp, error) {
	var st stamp
	for i, name := range []string{CertFile, KeyFile, CAFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			return stamp{}, err
		}
		st[i].size, st[i].mtime = info.Size(), info.ModTime().UnixNano()
		if sys, ok := info.Sys().(*syscall.Stat_t); ok {
			st[i].inode = sys.Ino
		}
	}
	return st, nil
}

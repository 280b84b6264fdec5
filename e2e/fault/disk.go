package fault

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

func (m *Member) points() string  { return filepath.Join(m.dir, "failpoints") }
func (m *Member) ballast() string { return filepath.Join(m.dir, "ballast") }

// fillDisk fills the file system to the last byte.
func (m *Member) fillDisk() error {
	f, err := os.OpenFile(m.ballast(), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4 << 10} {
		chunk := make([]byte, size)
		for err == nil {
			_, err = f.Write(chunk)
		}
		if !errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("fill the disk of %s: %w", m.Name, err)
		}
		err = nil
	}
	return nil
}

func (m *Member) emptyDisk() error { return os.Remove(m.ballast()) }

// forgetAll removes the data of the member's stores.
func (m *Member) forgetAll() error { return os.RemoveAll(m.data()) }

// tearTails appends to both logs what a write interrupted by a power loss leaves behind: part of a
// record after the last one that was synced.
func (m *Member) tearTails() error {
	if err := m.onWAL(func(f *os.File, _, end int64) error {
		// A record of 4,000 bytes of which the first sector was written.
		torn := binary.LittleEndian.AppendUint64(nil, 4000)
		rest := make([]byte, 512-(end+8)%512)
		_, _ = rand.Read(rest)
		_, err := f.WriteAt(append(torn, rest...), end)
		return err
	}); err != nil {
		return err
	}
	return m.onLog(func(f *os.File, older, _ int64) error {
		// The next transaction would have written the older meta page.
		torn := make([]byte, 40)
		_, _ = rand.Read(torn)
		_, err := f.WriteAt(torn, older+16+24)
		return err
	})
}

// breakWAL damages the last record of etcd's log.
func (m *Member) breakWAL() error {
	return m.onWAL(func(f *os.File, last, _ int64) error {
		b := make([]byte, 1)
		if _, err := f.ReadAt(b, last+20); err != nil {
			return err
		}
		b[0] ^= 0x5a
		_, err := f.WriteAt(b, last+20)
		return err
	})
}

// breakLog damages both meta pages of the raft store's log.
func (m *Member) breakLog() error {
	return m.onLog(func(f *os.File, older, newer int64) error {
		for _, page := range []int64{older, newer} {
			if _, err := f.WriteAt(make([]byte, 40), page+16+24); err != nil {
				return err
			}
		}
		return nil
	})
}

// onWAL calls do with the last file of etcd's log, the offset of its last record and the
// offset at which the records end.
func (m *Member) onWAL(do func(f *os.File, last, end int64) error) error {
	var path string
	err := filepath.WalkDir(filepath.Join(m.data(), "etcd"), func(p string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(p, ".wal") && p > path {
			path = p
		}
		return err
	})
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var last, end int64
	for {
		var head [8]byte
		if _, err := f.ReadAt(head[:], end); err != nil {
			break // the file ends with a record
		}
		size := binary.LittleEndian.Uint64(head[:])
		if size == 0 {
			break
		}
		// The low 56 bits are the record's length; the low 3 of the high byte its padding.
		length := int64(size & (1<<56 - 1))
		if int64(size) < 0 {
			length += int64(size >> 56 & 7)
		}
		last, end = end, end+8+length
	}
	if end == 0 {
		return fmt.Errorf("%s: no record", path)
	}
	return do(f, last, end)
}

// onLog calls do with the raft store's log and the offsets of the older and the newer of
// bbolt's two meta pages.
func (m *Member) onLog(do func(f *os.File, older, newer int64) error) error {
	f, err := os.OpenFile(filepath.Join(m.data(), "raft", "log.db"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	page := int64(os.Getpagesize())
	var ids [2]uint64
	for i := range ids {
		var id [8]byte
		if _, err := f.ReadAt(id[:], int64(i)*page+16+48); err != nil {
			return err
		}
		ids[i] = binary.LittleEndian.Uint64(id[:])
	}
	if ids[0] < ids[1] {
		return do(f, 0, page)
	}
	return do(f, page, 0)
}

// size returns the length of the member's log; since returns what was appended after that length.
func (m *Member) size() int64 {
	s, err := os.Stat(m.log)
	if err != nil {
		return 0
	}
	return s.Size()
}

func (m *Member) since(size int64) string {
	data, err := os.ReadFile(m.log)
	if err != nil || int64(len(data)) < size {
		return ""
	}
	return string(data[size:])
}

// saysWhy reports whether the program's log names what it could not read in the last line before
// the program first ended by itself. A later start, which the harness may have killed before it
// could log its reason, does not count.
func saysWhy(said, what string) bool {
	last := ""
	for line := range strings.Lines(said) {
		switch {
		case !strings.HasPrefix(line, "--- "):
			last = line
		case strings.Contains(line, "ended: exit status"):
			return strings.Contains(last, what)
		default:
			last = ""
		}
	}
	return false
}

package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxSlots bounds the search for a directory.
const maxSlots = 1000

// Slot is a node's directory, held by a lock until it is closed or its process
// ends.
type Slot struct {
	// Name is the node's.
	Name string
	// Dir is the directory, of which Data below is the node's.
	dir  string
	lock *os.File
}

// Claim takes the first directory node-N of dir that nobody holds.
func Claim(dir string) (*Slot, error) {
	for i := range maxSlots {
		s := &Slot{Name: fmt.Sprintf("node-%d", i)}
		s.dir = filepath.Join(dir, s.Name)
		if err := os.MkdirAll(filepath.Join(s.dir, "data"), 0o711); err != nil {
			return nil, fmt.Errorf("a node's directory: %w", err)
		}
		lock, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("a node's directory: %w", err)
		}
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			s.lock = lock
			return s, nil
		}
		lock.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", s.dir, err)
		}
	}
	return nil, fmt.Errorf("all %d directories in %s are taken", maxSlots, dir)
}

// Mount puts the node's own data to the place where every node has it, and takes
// those of other nodes out of sight.
func (s *Slot) Mount(nodes, home string) error {
	if err := os.MkdirAll(home, 0o711); err != nil {
		return err
	}
	if err := unix.Mount(filepath.Join(s.dir, "data"), home, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", home, err)
	}
	if err := unix.Unmount(nodes, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", nodes, err)
	}
	return nil
}

// Close gives the directory free.
func (s *Slot) Close() error { return s.lock.Close() }

package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Slot is a node's directory, held by a lock until it is closed or its process
// ends.
type Slot struct {
	// dir is the directory, of which data below is the node's.
	dir  string
	lock *os.File
}

// Claim holds the directory of a node, unless another process does.
func Claim(nodes, name string) (*Slot, error) {
	s := &Slot{dir: filepath.Join(nodes, name)}
	if err := os.MkdirAll(filepath.Join(s.dir, "data"), 0o711); err != nil {
		return nil, fmt.Errorf("directory of node %s: %w", name, err)
	}
	lock, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("directory of node %s: %w", name, err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("node %s runs in another container already: there is one container per node, with a --name and a volume of its own", name)
		}
		return nil, fmt.Errorf("lock %s: %w", s.dir, err)
	}
	s.lock = lock
	return s, nil
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

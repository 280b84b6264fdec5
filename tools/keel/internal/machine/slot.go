package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Slot is a node's directory, locked until Close or until the process ends.
type Slot struct {
	// dir contains the lock and the directory data, which belongs to the node.
	dir  string
	lock *os.File
}

// Claim locks the directory of a node. It returns an error if another process holds the lock.
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
			return nil, fmt.Errorf("node %s is already running in another container: give each container its own --name and volume", name)
		}
		return nil, fmt.Errorf("lock %s: %w", s.dir, err)
	}
	s.lock = lock
	return s, nil
}

// Mount mounts the node's data at home, and hides the directories of other nodes.
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

// Close releases the directory.
func (s *Slot) Close() error { return s.lock.Close() }

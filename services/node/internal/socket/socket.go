// Package socket opens the unix sockets that a node serves to programs of root on its own
// machine.
//
// It must never open a socket that another user may connect to, not even for a moment, nor
// one in a directory in which another user could replace it.
package socket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen listens on a unix socket at path, which only this process's user may connect to. It
// creates the socket's directory and replaces a socket that a predecessor has left there.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if err := Private(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("%s is not a socket: remove it", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	var mode error
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// Linux gives the file the mode of the socket that is bound, so it is never wider.
		return errors.Join(c.Control(func(fd uintptr) { mode = unix.Fchmod(int(fd), 0o600) }), mode)
	}}
	return config.Listen(ctx, "unix", path)
}

// Private creates a directory, and returns an error if a user other than this process's may
// change what is in it.
func Private(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(stat.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("%s must be a directory that only its owner, user %d, may write to", dir, os.Geteuid())
	}
	return nil
}

// Lock takes a directory for this process until unlock is called. It returns an error if
// another process has taken it.
func Lock(dir string) (unlock func() error, err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", dir, err)
	}
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = unix.Close(fd)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s is used by another node of this machine: give each node a directory of its own", dir)
		}
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() error { return unix.Close(fd) }, nil
}

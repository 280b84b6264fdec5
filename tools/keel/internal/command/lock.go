package command

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"keelson.dev/tools/keel/internal/cluster"
)

// share makes a program that changes the home's data hold the lock too. It may outlive this
// process, if that is killed, and other keels must wait for it.
func (e *env) share(cmd *exec.Cmd) {
	if e.lock != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, e.lock)
	}
}

// alone waits until no other keel changes the cluster in a directory, and keeps others out
// until unlock is called or this process ends.
func (e *env) alone(ctx context.Context, home string) (unlock func(), err error) {
	if err := errors.Join(cluster.Trust(home), cluster.Vacant(home)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(cluster.LockFile(home), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for announced := false; ; {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			e.lock = lock
			return func() { e.lock = nil; lock.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			lock.Close()
			return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
		}
		if !announced {
			fmt.Fprintf(e.err, "waiting for another keel that is changing %s\n", home)
			announced = true
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			lock.Close()
			return nil, fmt.Errorf("another keel is still changing %s: %w", home, ctx.Err())
		}
	}
}

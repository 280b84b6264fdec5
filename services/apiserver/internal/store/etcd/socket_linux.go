package etcd

import (
	"context"
	"syscall"

	"golang.org/x/sys/unix"
)

// endUnanswered makes a connection fail when data sent on it is not acknowledged for the time
// unanswered. Connections accepted by a listener inherit this.
func endUnanswered(_ context.Context, _, _ string, c syscall.RawConn) (err error) {
	failed := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unanswered.Milliseconds()))
	})
	if failed != nil {
		return failed
	}
	return err
}

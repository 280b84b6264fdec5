package etcd

import (
	"context"
	"syscall"

	"golang.org/x/sys/unix"
)

// endUnanswered lets a connection end when what was sent to it is not acknowledged
// for a while; connections taken from a listener inherit it.
func endUnanswered(_ context.Context, _, _ string, c syscall.RawConn) (err error) {
	failed := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unanswered.Milliseconds()))
	})
	if failed != nil {
		return failed
	}
	return err
}

package fault

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This process answers a member's fsync and fdatasync calls: a filter that is installed before the
// program is executed passes them on (seccomp_unotify(2)). There is no other way to delay the syncs
// of a static program here: dm-delay may be missing, and a static program ignores LD_PRELOAD.

// launch is this program's role as a launcher: it installs the filter, sends the filter's
// listener through the socket at descriptor 3, and executes the program that its arguments
// name.
func launch(args []string) error {
	runtime.LockOSThread()
	if err := os.Unsetenv(roleVariable); err != nil {
		return err
	}
	filter := syncFilter()
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("install the seccomp filter: %w", errno)
	}
	if err := unix.Sendmsg(3, []byte{0}, unix.UnixRights(int(listener)), nil, 0); err != nil {
		return fmt.Errorf("send the listener: %w", err)
	}
	unix.CloseOnExec(3)
	unix.CloseOnExec(int(listener))
	return fmt.Errorf("%s: %w", args[0], syscall.Exec(args[0], args, os.Environ()))
}

// syncFilter passes fsync and fdatasync to the listener and allows everything else.
func syncFilter() []unix.SockFilter {
	const dataNr = 0
	return []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: dataNr},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_FSYNC, Jt: 1},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_FDATASYNC, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
}

// syncs answers the syncs of one process.
type syncs struct {
	listener int
	// delay, in nanoseconds, precedes each answer; fail is how many of the next syncs are
	// reported as failed.
	delay, fail *atomic.Int64
}

// seccompNotif and seccompResp are the structures of seccomp_unotify(2).
type seccompNotif struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

type seccompResp struct {
	id    uint64
	val   int64
	error int32
	flags uint32
}

// receive receives the listener from the launcher's socket.
func (s *syncs) receive(conn *net.UnixConn) error {
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(b[:], oob)
	if err != nil {
		return err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return errors.Join(errors.New("the launcher sent no listener"), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return errors.Join(errors.New("the launcher sent no listener"), err)
	}
	s.listener = fds[0]
	return nil
}

// serve answers until the process has ended.
func (s *syncs) serve() {
	defer unix.Close(s.listener)
	for {
		fds := []unix.PollFd{{Fd: int32(s.listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			return // no process with the filter is left
		}
		var n seccompNotif
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
			continue // its thread has been killed
		}
		resp := seccompResp{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if s.fail.Load() > 0 && s.fail.Add(-1) >= 0 {
			resp.flags, resp.error = 0, -int32(unix.EIO)
		}
		answer := func() {
			_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(s.listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&resp)))
		}
		if d := s.delay.Load(); d > 0 {
			time.AfterFunc(time.Duration(d), answer)
			continue
		}
		answer()
	}
}

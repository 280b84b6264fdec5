package balance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// shareTime bounds how long Listen waits for an address that another process holds and does not
// share yet.
const shareTime = 10 * time.Second

// Listen listens on an address together with other balancers: it requests the listener from
// those that serve one of the unix sockets from, and binds the address only if none of them
// answers. All of them then accept from one queue, which exists as long as one of them does, so
// that no connection is lost when a balancer ends, however it ends.
func Listen(ctx context.Context, address string, from ...string) (net.Listener, error) {
	ctx, cancel := context.WithTimeout(ctx, shareTime)
	defer cancel()
	want, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	for {
		for _, path := range from {
			l, err := receive(ctx, path)
			if err == nil && l.Addr().String() == want.String() {
				return l, nil
			}
			if err == nil {
				l.Close() // it listens on another address, because this one's has changed
			}
		}
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err == nil || len(from) == 0 || !errors.Is(err, syscall.EADDRINUSE) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// receive receives a listener from the process that serves a unix socket.
func receive(ctx context.Context, path string) (net.Listener, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	control := make([]byte, syscall.CmsgSpace(4))
	_, n, _, _, err := conn.(*net.UnixConn).ReadMsgUnix(make([]byte, 1), control)
	if err != nil {
		return nil, err
	}
	messages, err := syscall.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%s did not send a listener: %w", path, err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("%s did not send a listener: %w", path, err)
	}
	file := os.NewFile(uintptr(fds[0]), path)
	defer file.Close()
	return net.FileListener(file)
}

// Share sends a listener to every process that connects to a unix socket, until ctx ends. Only
// this user may connect to the socket. wait waits until sharing has ended.
func Share(ctx context.Context, l net.Listener, path string) (wait func(), err error) {
	_ = os.Remove(path)
	mask := syscall.Umask(0o177)
	socket, err := net.Listen("unix", path)
	syscall.Umask(mask)
	if err != nil {
		return nil, err
	}
	// Use a copy of the listener, which is closed when sharing ends.
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		socket.Close()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	var wg sync.WaitGroup
	wg.Go(func() {
		defer file.Close()
		defer stop()
		for {
			conn, err := socket.Accept()
			if err != nil {
				return
			}
			_ = conn.SetDeadline(time.Now().Add(time.Second))
			if err := give(conn.(*net.UnixConn), file); err != nil {
				slog.DebugContext(ctx, "cannot hand out the listener", "error", err)
			}
			conn.Close()
		}
	})
	return wg.Wait, nil
}

// give sends a file to the process that has connected. It does not use File.Fd, which would
// make the file blocking for all processes that share the listener. If the process did not
// receive the file, for example because it only checks whether this balancer is running, the
// file would stay blocking. The processes whose Accept loses the race for a connection would
// then block in it and could not stop.
func give(to *net.UnixConn, file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Control(func(fd uintptr) {
		_, _, sent = to.WriteMsgUnix([]byte{0}, syscall.UnixRights(int(fd)), nil)
	}); err != nil {
		return err
	}
	return sent
}

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

// shareTime is how long a balancer waits for an address that another holds and
// does not share yet.
const shareTime = 10 * time.Second

// Listen listens on an address together with others: it asks those who serve one of
// the unix sockets `from` for their listener, and binds the address only where none
// of them answers. All of them then accept from one queue, which is there as long
// as one of them is, so nobody who connects is lost with the one that ends, however
// it ends.
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
				l.Close() // of another address, before this one's was changed
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

// receive gets a listener from whoever serves a unix socket.
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
		return nil, fmt.Errorf("%s sent no listener: %w", path, err)
	}
	fds, err := syscall.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("%s sent no listener: %w", path, err)
	}
	file := os.NewFile(uintptr(fds[0]), path)
	defer file.Close()
	return net.FileListener(file)
}

// Share gives a listener to whoever connects to a unix socket, until ctx ends. The
// socket is for this user alone. The function waits for the end.
func Share(ctx context.Context, l net.Listener, path string) (wait func(), err error) {
	_ = os.Remove(path)
	mask := syscall.Umask(0o177)
	socket, err := net.Listen("unix", path)
	syscall.Umask(mask)
	if err != nil {
		return nil, err
	}
	// A copy, which takes part in nothing: it ends with the sharing.
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
				slog.DebugContext(ctx, "listener was not handed out", "error", err)
			}
			conn.Close()
		}
	})
	return wg.Wait, nil
}

// give sends a file to whoever has connected. It leaves the file as it is: File.Fd would
// make it blocking, for all who share the listener, and who does not take it, such as
// one that asks whether this balancer is well, would leave it so. Those whose Accept the
// others get ahead of would wait in it then, and not end.
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

package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	podv1 "keelson.dev/proto/keelson/pod/v1"
)

// maxForwards bounds the connections of a listener at once.
const maxForwards = 256

// lingerTime bounds how long data that was written before Close may take to arrive. Tests change it.
var lingerTime = 5 * time.Second

// PortForward connects to a TCP port of a pod. ctx bounds only the time until the session is open; the
// connection lasts until it is closed. If nothing listens on the port, the first Read fails. The
// connection has deadlines and a CloseWrite method. Permission: create on pods/portforward.
//
// Close returns at once; what was written before is still delivered, within 5 seconds and
// unless the Client is closed.
func (c *Client) PortForward(ctx context.Context, namespace, pod string, port int) (net.Conn, error) {
	address := fmt.Sprintf("%s/%s:%d", namespace, pod, port)
	what := "port-forward to " + address
	if port < 1 || port > 65535 {
		return nil, fmt.Errorf("%s: the port is not between 1 and 65535", what)
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	opening := context.AfterFunc(ctx, cancel)
	defer opening()
	stream, err := podv1.NewPodServiceClient(c.conn).PortForward(own)
	if err != nil {
		cancel()
		return nil, fromRPC(ctx, what, err)
	}
	start := &podv1.PortForwardStart{Namespace: namespace, Pod: pod, Port: int32(port)}
	_ = stream.Send(&podv1.PortForwardRequest{Message: &podv1.PortForwardRequest_Start{Start: start}}) // Recv returns why
	m, err := stream.Recv()
	switch {
	case err == nil && m.GetStarted() == nil:
		err = errors.New("the server did not start the stream")
	case err == nil && !opening():
		err = ctx.Err()
	}
	if err != nil {
		cancel()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fromRPC(ctx, what, err)
	}
	f := &forwarded{ctx: own, cancel: cancel, stream: stream, address: podAddr(address), what: what}
	f.read, f.received = net.Pipe()
	f.write, f.sent = net.Pipe()
	go f.send()
	go f.receive()
	return f, nil
}

// forwarded is a connection over a stream. Each direction is a pipe, which has the deadlines; a
// goroutine moves the data between a pipe and the stream. Both end with the stream.
type forwarded struct {
	ctx            context.Context
	cancel         context.CancelFunc
	stream         podv1.PodService_PortForwardClient
	address        podAddr
	what           string
	read, received net.Conn // the caller reads from read
	write, sent    net.Conn // the caller writes to write

	closing sync.Once
	mu      sync.Mutex
	err     error // why the stream ended
}

var _ net.Conn = (*forwarded)(nil)

// send sends what the caller writes.
func (f *forwarded) send() {
	defer f.sent.Close()
	buf := make([]byte, podData)
	for {
		n, err := f.sent.Read(buf)
		if n > 0 && f.stream.Send(&podv1.PortForwardRequest{Message: &podv1.PortForwardRequest_Data{Data: buf[:n]}}) != nil {
			return // receive gets the reason
		}
		if err != nil {
			_ = f.stream.CloseSend()
			return
		}
	}
}

// receive passes the pod's data to the caller. After Close it discards the data, until the stream
// has ended.
func (f *forwarded) receive() {
	defer f.cancel()
	defer f.sent.Close()
	defer f.received.Close()
	for {
		m, err := f.stream.Recv()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				f.mu.Lock()
				f.err = fromRPC(f.ctx, f.what, err)
				f.mu.Unlock()
			}
			return
		}
		if m.GetDataEnd() != nil {
			_ = f.received.Close()
		}
		if data := m.GetData(); len(data) > 0 {
			_, _ = f.received.Write(data) // fails if the caller has closed the connection
		}
	}
}

// because replaces the error of a closed pipe by the reason why the stream ended.
func (f *forwarded) because(err error) error {
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return f.err
	}
	return err
}

// Read implements net.Conn.
func (f *forwarded) Read(p []byte) (int, error) {
	n, err := f.read.Read(p)
	return n, f.because(err)
}

// Write implements net.Conn.
func (f *forwarded) Write(p []byte) (int, error) {
	n, err := f.write.Write(p)
	return n, f.because(err)
}

// CloseWrite ends the direction to the pod, as that of net.TCPConn.
func (f *forwarded) CloseWrite() error { return f.write.Close() }

// Close implements net.Conn.
func (f *forwarded) Close() error {
	f.closing.Do(func() {
		timer := time.AfterFunc(lingerTime, f.cancel)
		context.AfterFunc(f.ctx, func() { timer.Stop() })
		_ = f.read.Close()
		_ = f.write.Close()
	})
	return nil
}

// LocalAddr implements net.Conn.
func (f *forwarded) LocalAddr() net.Addr { return podAddr("client") }

// RemoteAddr implements net.Conn: NAMESPACE/POD:PORT.
func (f *forwarded) RemoteAddr() net.Addr { return f.address }

// SetDeadline implements net.Conn.
func (f *forwarded) SetDeadline(t time.Time) error {
	return errors.Join(f.read.SetReadDeadline(t), f.write.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (f *forwarded) SetReadDeadline(t time.Time) error { return f.read.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (f *forwarded) SetWriteDeadline(t time.Time) error { return f.write.SetWriteDeadline(t) }

// podAddr is the address of a port of a pod.
type podAddr string

// Network implements net.Addr.
func (podAddr) Network() string { return "pod" }

// String implements net.Addr.
func (a podAddr) String() string { return string(a) }

// ForwardPort forwards each connection that l accepts to a TCP port of a pod, at most 256 at once;
// others wait to be accepted. It returns nil when ctx ends, and the error of l if that fails. It
// closes l, and returns when all connections have ended. failed, if not nil, is called with
// the error of each connection that could not be forwarded, by several goroutines.
func (c *Client) ForwardPort(ctx context.Context, l net.Listener, namespace, pod string, port int, failed func(error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	defer l.Close()
	var connections sync.WaitGroup
	defer connections.Wait()
	defer cancel()
	places := make(chan struct{}, maxForwards)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		local, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("port-forward to %s/%s:%d: %w", namespace, pod, port, err)
		}
		connections.Go(func() {
			defer func() { <-places }()
			if err := c.forwardConn(ctx, local, namespace, pod, port); err != nil && ctx.Err() == nil && failed != nil {
				failed(err)
			}
		})
	}
}

// halfCloser is a connection whose directions end one by one.
type halfCloser interface{ CloseWrite() error }

// forwardConn forwards one connection.
func (c *Client) forwardConn(ctx context.Context, local net.Conn, namespace, pod string, port int) error {
	defer local.Close()
	remote, err := c.PortForward(ctx, namespace, pod, port)
	if err != nil {
		return err
	}
	defer remote.Close()
	defer context.AfterFunc(ctx, func() {
		_ = local.Close()
		_ = remote.Close()
	})()
	up := make(chan error, 1)
	go func() {
		_, err := io.Copy(remote, local)
		if half, ok := remote.(halfCloser); ok {
			_ = half.CloseWrite()
		}
		up <- err
	}()
	_, err = io.Copy(local, remote)
	if half, ok := local.(halfCloser); err == nil && ok {
		_ = half.CloseWrite()
	} else {
		_ = local.Close() // ends the other direction too
	}
	<-up
	return err
}

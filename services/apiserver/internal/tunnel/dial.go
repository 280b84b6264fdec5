package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"

	nodev1 "keelson.dev/proto/keelson/node/v1"
)

// Dial connects to host:port from the node. The connection is closed when ctx ends. If the node
// cannot connect, the first Read returns the reason.
func (s *Server) Dial(ctx context.Context, node, address string) (net.Conn, error) {
	return s.connect(ctx, node, &nodev1.Open{Target: &nodev1.Open_Dial{
		Dial: &nodev1.Dial{Network: "tcp", Address: address},
	}})
}

// API connects to the read API of a node, which speaks HTTP/1.1.
func (s *Server) API(ctx context.Context, node string) (net.Conn, error) {
	return s.connect(ctx, node, &nodev1.Open{Target: &nodev1.Open_Api{Api: &nodev1.Api{}}})
}

// connect opens a session that carries a connection.
func (s *Server) connect(ctx context.Context, node string, open *nodev1.Open) (net.Conn, error) {
	session, err := s.Open(ctx, node, open)
	if err != nil {
		return nil, err
	}
	// The pipe implements the connection's deadlines.
	near, far := net.Pipe()
	c := &dialed{Conn: near, session: session}
	go func() {
		c.end(session.Output(struct{ io.Writer }{far}, nil))
		_ = far.Close()
	}()
	go func() { _ = session.Input(nodev1.Channel_CHANNEL_STDIN, far) }()
	return c, nil
}

// dialed is a connection over a session.
type dialed struct {
	net.Conn
	session *Session
	mu      sync.Mutex
	err     error // why the session ended
}

func (c *dialed) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
}

// Read returns the session's error instead of io.EOF if the session failed.
func (c *dialed) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.because(err)
}

// Write returns the session's error instead of io.ErrClosedPipe if the session failed.
func (c *dialed) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.because(err)
}

// because replaces the error of a closed connection by the reason why the session ended.
func (c *dialed) because(err error) error {
	if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	return err
}

// Close ends the session on both sides.
func (c *dialed) Close() error {
	err := c.Conn.Close()
	c.session.Close()
	return err
}

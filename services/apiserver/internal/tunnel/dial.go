package tunnel

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"

	nodev1 "keelson.dev/proto/keelson/node/v1"
)

// Dial connects to host:port as the node sees it. The connection ends with ctx. A
// node that cannot connect says why in the first Read.
func (s *Server) Dial(ctx context.Context, node, address string) (net.Conn, error) {
	session, err := s.Open(ctx, node, &nodev1.Open{Target: &nodev1.Open_Dial{
		Dial: &nodev1.Dial{Network: "tcp", Address: address},
	}})
	if err != nil {
		return nil, err
	}
	// A pipe gives the connection its deadlines.
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

// Read says why the session ended instead of io.EOF, if it did not end well.
func (c *dialed) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.because(err)
}

// Write says why the session ended.
func (c *dialed) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.because(err)
}

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

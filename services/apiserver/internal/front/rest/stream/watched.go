package stream

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// watched is a ResponseWriter that reports when its hijacked connection breaks, because an
// upgraded connection has no context of its own.
type watched struct {
	http.ResponseWriter
	broken func()
}

// Unwrap is used by http.ResponseController.
func (w *watched) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Hijack implements http.Hijacker.
func (w *watched) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	var early []byte
	if n := rw.Reader.Buffered(); n > 0 {
		early, _ = rw.Reader.Peek(n)
		early = bytes.Clone(early)
	}
	c := &watchedConn{Conn: conn, broken: w.broken}
	var r io.Reader = c
	if len(early) > 0 {
		r = io.MultiReader(bytes.NewReader(early), c)
	}
	return c, bufio.NewReadWriter(bufio.NewReader(r), bufio.NewWriter(c)), nil
}

// watchedConn calls broken at the first failed Read or Write and at Close.
type watchedConn struct {
	net.Conn
	once   sync.Once
	broken func()
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.once.Do(c.broken)
	}
	return n, err
}

func (c *watchedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil {
		c.once.Do(c.broken)
	}
	return n, err
}

func (c *watchedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.broken)
	return err
}

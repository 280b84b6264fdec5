// Package sniff distinguishes gRPC from HTTP on an HTTP/2 connection by the content type of its
// first request, so that one port can serve both.
//
// A gRPC client sends no request before it has the server's SETTINGS, so this package sends them.
// The server that then handles the connection sends its own as well, which HTTP/2 allows, and
// does not see the client's acknowledgement of the first ones.
//
// The package must never decide who may connect, and never keep more of an unauthenticated
// client's data than the head of one request.
package sniff

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	// patience is how long a client may take until its first request, like an idle HTTP
	// connection.
	patience = 3 * time.Minute
	// maxFrame and maxHead bound, in bytes, a frame and everything before the first request.
	maxFrame = 16 << 10
	maxHead  = 64 << 10
	// maxPings bounds the pings before the first request.
	maxPings = 64

	frameHead = 9 // bytes before a frame's payload
)

// Conn is a connection from its first byte after the TLS handshake.
type Conn struct {
	*tls.Conn
	head []byte // already read
	// skip is true until the acknowledgement of the SETTINGS sent here has been read and dropped;
	// frames are parsed until then. payload is what is left to read of the current frame.
	skip    bool
	payload int

	closed sync.Once
	done   chan struct{}
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	c.head = nil
	if len(p) == 0 {
		return 0, nil
	}
	if c.payload > 0 {
		n, err := c.Conn.Read(p[:min(len(p), c.payload)])
		c.payload -= n
		return n, err
	}
	if !c.skip {
		return c.Conn.Read(p)
	}
	var head [frameHead]byte
	if _, err := io.ReadFull(c.Conn, head[:]); err != nil {
		return 0, err
	}
	if isAck(head[:]) {
		c.skip = false
		return c.Conn.Read(p)
	}
	c.head, c.payload = head[:], int(head[0])<<16|int(head[1])<<8|int(head[2])
	return c.Read(p)
}

// isAck reports whether a frame header acknowledges SETTINGS.
func isAck(head []byte) bool {
	return http2.FrameType(head[3]) == http2.FrameSettings && http2.Flags(head[4]).Has(http2.FlagSettingsAck)
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	err := c.Conn.Close()
	c.closed.Do(func() { close(c.done) })
	return err
}

// Done returns a channel that is closed when the connection is closed.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Next reads up to the first request and reports whether it is a gRPC call. It does not close the
// connection on error.
func Next(t *tls.Conn) (c *Conn, grpc bool, err error) {
	if err := t.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, false, err
	}
	c = &Conn{Conn: t, skip: true, done: make(chan struct{})}
	read := &recording{r: t}
	framer := http2.NewFramer(t, read)
	framer.SetMaxReadFrameSize(maxFrame)
	framer.MaxHeaderListSize = maxFrame
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := framer.WriteSettings(); err != nil {
		return nil, false, err
	}
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(read, preface); err != nil {
		return nil, false, err
	}
	if string(preface) != http2.ClientPreface {
		return nil, false, errors.New("not an HTTP/2 preface")
	}
	for pings := 0; ; {
		before := read.got.Len()
		frame, err := framer.ReadFrame()
		if err != nil {
			return nil, false, err
		}
		switch f := frame.(type) {
		case *http2.MetaHeadersFrame:
			c.head = read.got.Bytes()
			for _, field := range f.RegularFields() {
				grpc = grpc || field.Name == "content-type" && strings.HasPrefix(field.Value, "application/grpc")
			}
			return c, grpc, t.SetDeadline(time.Time{})
		case *http2.SettingsFrame:
			if f.IsAck() && c.skip {
				c.skip = false
				read.got.Truncate(before)
			}
		case *http2.PingFrame:
			if f.IsAck() {
				break
			}
			if pings++; pings > maxPings {
				return nil, false, errors.New("too many pings before the first request")
			}
			if err := framer.WritePing(true, f.Data); err != nil {
				return nil, false, err
			}
			read.got.Truncate(before)
		}
	}
}

// recording keeps what is read, up to maxHead. The framer does not bound this, because a header
// block may continue in any number of empty CONTINUATION frames.
type recording struct {
	r   io.Reader
	got bytes.Buffer
}

func (r *recording) Read(p []byte) (int, error) {
	left := maxHead - r.got.Len()
	if left <= 0 {
		return 0, fmt.Errorf("more than %d bytes before the first request", maxHead)
	}
	n, err := r.r.Read(p[:min(len(p), left)])
	r.got.Write(p[:n])
	return n, err
}

// Listener passes sniffed connections to a server.
type Listener struct {
	addr  net.Addr
	conns chan net.Conn
	close sync.Once
	done  chan struct{}
}

// NewListener returns a listener that reports the given address.
func NewListener(addr net.Addr) *Listener {
	return &Listener{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// Serve passes a connection to the server, and returns when the connection is closed.
func (l *Listener) Serve(c *Conn) {
	select {
	case l.conns <- c:
		<-c.Done()
	case <-l.done:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.close.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return l.addr }

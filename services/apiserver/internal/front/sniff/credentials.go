package sniff

import (
	"errors"
	"io"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc/credentials"
)

// Responses to clients that do not speak gRPC over TLS. An insecure gRPC client includes the
// beginning of answerPlain in its error.
const (
	answerPlain = "HTTP/1.0 400 Bad Request\r\nConnection: close\r\n\r\nclient sent an HTTP request to an HTTPS server\n"
	answerHTTP1 = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n" +
		"this port serves gRPC; Kubernetes' API over HTTP is on the HTTPS port (--listen-https, 6443)\n"
)

// answerTime bounds the time to write a response.
const answerTime = time.Second

var (
	errPlain = errors.New("the client sent an HTTP request without TLS")
	errHTTP1 = errors.New("the client speaks HTTP/1.1")
)

// Credentials accept a sniffed connection as it is, because its handshake is complete. For other
// connections they use the wrapped credentials, and respond to clients that speak HTTP without
// TLS, or HTTP/1.1.
type Credentials struct {
	credentials.TransportCredentials
}

// ServerHandshake implements credentials.TransportCredentials.
func (c Credentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	sniffed, ok := conn.(*Conn)
	if !ok {
		return c.handshake(conn)
	}
	return sniffed, credentials.TLSInfo{
		State:          sniffed.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

func (c Credentials) handshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, auth, err := c.TransportCredentials.ServerHandshake(&firstRead{Conn: raw})
	if err != nil {
		return nil, nil, err
	}
	if info, ok := auth.(credentials.TLSInfo); ok && info.State.NegotiatedProtocol == "http/1.1" {
		// If the request remained unread, the connection would be reset and the response lost.
		_ = conn.SetDeadline(time.Now().Add(answerTime))
		_, _ = conn.Read(make([]byte, 4<<10))
		_, _ = io.WriteString(conn, answerHTTP1)
		_ = conn.Close()
		return nil, nil, errHTTP1
	}
	return conn, auth, nil
}

// Clone implements credentials.TransportCredentials.
func (c Credentials) Clone() credentials.TransportCredentials {
	return Credentials{c.TransportCredentials.Clone()}
}

// firstRead responds to a client whose first bytes are HTTP instead of TLS.
type firstRead struct {
	net.Conn
	done bool // set after the handshake, whose goroutine is the only reader before
}

// beginnings are the first bytes of HTTP requests that TLS reads as the head of its first record.
var beginnings = []string{"GET /", "HEAD ", "POST ", "PUT /", "PATCH", "DELET", "OPTIO", "CONNE", "PRI *"}

func (c *firstRead) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.done || n == 0 {
		return n, err
	}
	c.done = true
	if n >= len("GET /") && slices.Contains(beginnings, string(p[:len("GET /")])) {
		_ = c.SetWriteDeadline(time.Now().Add(answerTime))
		_, _ = io.WriteString(c.Conn, answerPlain)
		return 0, errPlain
	}
	return n, err
}

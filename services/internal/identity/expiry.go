package identity

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc/credentials"
)

// renewMargin is how long before the end of its certificate a connection is made anew,
// with the certificate of that time, if there is a later one.
const renewMargin = time.Minute

// ClientHandshake shows and trusts what the files hold now. The connection ends with
// the certificate that it has shown: a server answers no call by an expired one, and
// gRPC would otherwise keep the connection for ever. The next one shows what the files
// hold then.
func (c *clientCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	shown := c.source.Current()
	config := clientTLS(shown, c.serverName...)
	conn, info, err := credentials.NewTLS(config).ClientHandshake(ctx, authority, raw)
	if err != nil {
		return conn, info, err
	}
	left := time.Until(shown.Certificate.Leaf.NotAfter)
	if left <= 0 {
		return conn, info, nil // there is nothing better to show
	}
	if left > renewMargin {
		left -= renewMargin
	}
	return &expiring{Conn: conn, timer: c.source.after(left, func() { _ = conn.Close() })}, info, nil
}

// expiring is a connection that a timer closes.
type expiring struct {
	net.Conn
	timer *time.Timer
}

// Close implements net.Conn.
func (e *expiring) Close() error {
	e.timer.Stop()
	return e.Conn.Close()
}

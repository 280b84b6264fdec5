package identity

import (
	"context"
	"net"
	"time"

	"google.golang.org/grpc/credentials"
)

// renewMargin is how long before its certificate expires a connection is closed, to be
// replaced by one with the renewed certificate, if there is one by then.
const renewMargin = time.Minute

// ClientHandshake uses the certificate and CA that the files contain now. The connection
// ends before that certificate expires: servers refuse calls by an expired one, and gRPC
// would otherwise keep the connection forever. The next connection uses the files'
// contents of that time.
func (c *clientCredentials) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	shown := c.source.Current()
	config := clientTLS(shown, c.serverName...)
	conn, info, err := credentials.NewTLS(config).ClientHandshake(ctx, authority, raw)
	if err != nil {
		return conn, info, err
	}
	left := time.Until(shown.Certificate.Leaf.NotAfter)
	if left <= 0 {
		return conn, info, nil // there is no later certificate
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

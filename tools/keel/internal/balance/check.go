package balance

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"
)

// checkTime bounds a check.
const checkTime = 3 * time.Second

// Check returns an error unless a backend answers through a balancer. It makes a TLS handshake
// and closes the connection, without verifying or sending anything.
func Check(ctx context.Context, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("address %q: %w", address, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		address = net.JoinHostPort("localhost", port)
	}
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // nothing is sent or trusted
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("no apiserver answers through %s: %w", address, err)
	}
	return conn.Close()
}

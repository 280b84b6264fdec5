package balance

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"
)

// checkTime is how long a check may take.
const checkTime = 3 * time.Second

// Check tells whether a backend answers through a balancer: its TLS is begun and
// dropped again, so nothing of what it shows is believed.
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
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // nothing is said or believed
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("no apiserver answers through %s: %w", address, err)
	}
	return conn.Close()
}

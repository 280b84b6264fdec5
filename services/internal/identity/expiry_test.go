package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"keelson.dev/services/internal/identity"
	"keelson.dev/services/internal/identity/identitytest"
)

// A connection of gRPC ends a minute before the certificate that it has shown, and the
// next one shows the renewed certificate.
func TestConnectionsEndWithTheirCertificates(t *testing.T) {
	ca := identitytest.NewCA(t)
	dir := t.TempDir()
	ca.Write(t, dir, "scheduler")
	source, err := identity.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left time.Duration
	var end func()
	source.SetAfter(func(d time.Duration, f func()) *time.Timer {
		left, end = d, f
		return time.NewTimer(time.Hour)
	})
	l, err := tls.Listen("tcp", "127.0.0.1:0", ca.Source(t, "kube-apiserver").ServerTLS(true))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	type seen struct {
		serial *big.Int
		ended  chan struct{}
	}
	accepted := make(chan seen)
	go func() {
		defer close(accepted)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if err := conn.(*tls.Conn).Handshake(); err != nil {
				t.Error(err)
			}
			s := seen{conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber, make(chan struct{})}
			go func() {
				defer close(s.ended)
				defer conn.Close()
				_, _ = conn.Read(make([]byte, 1))
			}()
			accepted <- s
		}
	}()
	connect := func() (net.Conn, seen) {
		t.Helper()
		raw, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn, _, err := source.ClientCredentials("localhost").ClientHandshake(t.Context(), "localhost", raw)
		if err != nil {
			t.Fatal(err)
		}
		return conn, <-accepted
	}
	first := source.Current().Certificate.Leaf
	conn, server := connect()
	defer conn.Close()
	if want := time.Until(first.NotAfter) - time.Minute; left < want-time.Minute || left > want+time.Minute {
		t.Errorf("the connection ends in %s, want about %s", left, want)
	}
	cert, key := ca.Issue(t, "scheduler", nil, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(48 * time.Hour) })
	for name, data := range map[string][]byte{identity.CertFile: cert, identity.KeyFile: key} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	end()
	<-server.ended
	again, renewed := connect()
	defer again.Close()
	if renewed.serial.Cmp(first.SerialNumber) == 0 {
		t.Error("the next connection shows the old certificate")
	}
	again.Close()
	<-renewed.ended
}

package sniff_test

import (
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"keelson.dev/services/apiserver/internal/front/sniff"
	"keelson.dev/services/internal/identity/identitytest"
)

// TestOtherProtocols checks the responses to clients that do not speak gRPC over TLS.
func TestOtherProtocols(t *testing.T) {
	ca := identitytest.NewCA(t)
	creds := sniff.Credentials{TransportCredentials: ca.Source(t, "kube-apiserver").ServerCredentials(false)}
	pool := ca.Source(t, "client").ClientTLS("localhost").RootCAs
	for name, tc := range map[string]struct {
		tls  bool
		send string
		want string
	}{
		"HTTP":           {false, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n", "client sent an HTTP request to an HTTPS server"},
		"HTTP/2":         {false, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "client sent an HTTP request to an HTTPS server"},
		"HTTPS":          {true, "GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n", "this port serves gRPC"},
		"something else": {false, "hello, world\r\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			done := make(chan error, 1)
			go func() {
				raw, err := l.Accept()
				if err == nil {
					defer raw.Close()
					_, _, err = creds.ServerHandshake(raw)
				}
				done <- err
			}()
			var conn net.Conn
			if tc.tls {
				conn, err = tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: pool, ServerName: "localhost", NextProtos: []string{"http/1.1"}})
			} else {
				conn, err = net.Dial("tcp", l.Addr().String())
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(time.Minute))
			if _, err := io.WriteString(conn, tc.send); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(conn)
			if err != nil && len(answer) == 0 && tc.want != "" || !strings.Contains(string(answer), tc.want) {
				t.Errorf("%q, %v", answer, err)
			}
			if tc.want != "" && !strings.HasPrefix(string(answer), "HTTP/1.") {
				t.Errorf("%q is not an HTTP response", answer)
			}
			if err := <-done; err == nil {
				t.Error("the connection was accepted")
			}
		})
	}
}

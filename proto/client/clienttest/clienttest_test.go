package clienttest_test

import (
	"net"
	"testing"

	"go.uber.org/goleak"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clientconformance"
	"keelson.dev/proto/client/clienttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestConformance runs the client's suite over a TCP connection.
func TestConformance(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := clienttest.NewServer()
	t.Cleanup(server.Serve(l))
	dial := func(t *testing.T, address string) *client.Client {
		t.Helper()
		c, err := client.Dial(client.Config{Endpoints: []string{address}, UserAgent: "conformance/1"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := c.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
		return c
	}
	clientconformance.Run(t, clientconformance.Config{
		Client: dial(t, l.Addr().String()), Namespace: "default",
		Endpoint: l.Addr().String(), Dial: dial, Compact: server.Compact,
	})
}

package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"

	"keelson.dev/proto/client"
)

// settleTime is how long members may take until all are healthy and one leads.
const settleTime = time.Minute

// Endpoints are the addresses of all apiservers' gRPC ports.
func (c *Cluster) Endpoints(t testing.TB) (out []string) {
	t.Helper()
	for _, p := range c.Apiservers(t) {
		out = append(out, p.GRPC)
	}
	return out
}

// TLS is the administrator's configuration.
func (c *Cluster) TLS(t testing.TB) *tls.Config {
	t.Helper()
	pki := filepath.Join(c.Home, "pki")
	cert, err := tls.LoadX509KeyPair(filepath.Join(pki, "admin", "tls.crt"), filepath.Join(pki, "admin", "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(pki, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: roots, MinVersion: tls.VersionTLS13}
}

// Dial connects to these endpoints as the administrator, until the test ends.
func (c *Cluster) Dial(t testing.TB, endpoints []string, options ...grpc.DialOption) *client.Client {
	t.Helper()
	api, err := client.Dial(client.Config{Endpoints: endpoints, UserAgent: "e2e", DialOptions: options, TLS: c.TLS(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() })
	return api
}

// Client connects to all apiservers as the administrator, until the test ends.
func (c *Cluster) Client(t testing.TB) *client.Client {
	t.Helper()
	return c.Dial(t, c.Endpoints(t))
}

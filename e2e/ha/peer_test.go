package ha_test

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.dev/e2e/internal/cluster"
)

// peersRefuseOthers checks that the members' peer ports, the raft store's and etcd's,
// accept peers only, not even an apiserver with its certificate of the cluster's authority.
func peersRefuseOthers(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(c.Home, "pki", "apiserver", "peer", "accept-cluster-authority")); err == nil {
		t.Error("the apiservers still accept the cluster's authority at their peer ports")
	}
	members, err := c.Members(t.Context())
	if err != nil || len(members) == 0 {
		t.Fatalf("the members are %v: %v", members, err)
	}
	for _, m := range members {
		host, _, err := net.SplitHostPort(m.Address)
		if err != nil {
			t.Fatalf("%s: %v", m.Name, err)
		}
		for _, name := range []string{"apiserver", "admin", "scheduler"} {
			dir := filepath.Join(c.Home, "pki", name)
			if err := refusal(t, m.Address, dir, "h2"); err == nil {
				t.Errorf("%s: the certificate of %s is accepted", m.Name, name)
			}
			if err := refusal(t, net.JoinHostPort(host, "2380"), dir, "keelson-etcd-cards"); err == nil {
				t.Errorf("etcd of %s: the certificate of %s is accepted", m.Name, name)
			}
		}
		if err := refusal(t, m.Address, filepath.Join(c.Home, "pki", "apiserver", "peer"), "h2"); err != nil {
			t.Errorf("%s: the certificate of a peer is refused: %v", m.Name, err)
		}
	}
}

// refusal returns the alert with which a server refuses a certificate, or nil. In TLS 1.3
// it comes after the client's handshake, so refusal reads a byte: a server that accepts
// sends HTTP/2's settings, or waits for the client and then closes the connection.
func refusal(t *testing.T, address, dir, protocol string) error {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if err := raw.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	c := tls.Client(raw, &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{protocol}, Certificates: []tls.Certificate{pair}, InsecureSkipVerify: true})
	if err := c.Handshake(); err != nil {
		return err
	}
	if _, err = c.Read(make([]byte, 1)); err != nil && strings.Contains(err.Error(), "remote error: tls") {
		return err
	}
	return nil
}

package ha_test

import (
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// peersRefuseOthers checks that the members' peer ports, the raft store's and etcd's,
// end connections of everybody but peers: also of an apiserver with its certificate
// of the cluster's authority. A peer's certificate gets no further than the others
// at the API.
func peersRefuseOthers(t *testing.T, c *controlPlane) {
	t.Helper()
	if _, err := os.Stat(filepath.Join(c.home, "pki", "apiserver", "peer", "accept-cluster-authority")); err == nil {
		t.Error("the apiservers go on accepting the cluster's authority at their peer ports")
	}
	out, err := c.try("keel", "member", "list", "--home", c.home)
	if err != nil {
		t.Fatalf("keel member list: %v\n%s", err, out)
	}
	members := 0
	for _, line := range strings.Split(out, "\n")[1:] {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		host, port, err := net.SplitHostPort(words[1])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		members++
		for _, name := range []string{"apiserver", "admin", "scheduler"} {
			dir := filepath.Join(c.home, "pki", name)
			if err := refusal(t, net.JoinHostPort(host, port), dir, "h2"); err == nil {
				t.Errorf("%s: the certificate of %s is accepted", words[0], name)
			}
			if err := refusal(t, net.JoinHostPort(host, "2380"), dir, "keelson-etcd-cards"); err == nil {
				t.Errorf("etcd of %s: the certificate of %s is accepted", words[0], name)
			}
		}
		if err := refusal(t, net.JoinHostPort(host, port), filepath.Join(c.home, "pki", "apiserver", "peer"), "h2"); err != nil {
			t.Errorf("%s: the certificate of a peer is refused: %v", words[0], err)
		}
	}
	if members == 0 {
		t.Errorf("keel member list shows no member: %s", out)
	}
}

// refusal is the alert that a server answers a certificate with, or nil. In TLS 1.3 it
// comes after the client's handshake, so a byte is awaited: a server that accepts
// sends HTTP/2's settings, or waits for the client and closes the connection.
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

package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"keelson.dev/e2e/internal/wait"
	"keelson.dev/proto/client"
)

// wholeTime bounds the time until all members are ready after a fault has been healed.
const wholeTime = 60 * time.Second

// Cluster is three members and the network between them.
type Cluster struct {
	Members []*Member
	Network *Network
	pki     *pki
	dir     string
	cancel  context.CancelFunc
}

// root is the directory of all files: a file system of the sandbox, mounted over a directory that
// every machine has.
const root = "/mnt"

// NewCluster starts members of the program bin, and waits until they are ready. Logs go
// to logs, or, if it is empty, into the sandbox.
func NewCluster(ctx context.Context, bin, logs string) (*Cluster, error) {
	const n = 3
	if err := unix.Mount("sandbox", root, "tmpfs", 0, "size=256m,mode=700"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	c := &Cluster{cancel: cancel}
	c.dir = root
	if logs == "" {
		logs = filepath.Join(root, "log")
	}
	if err := os.MkdirAll(logs, 0o700); err != nil {
		return c, err
	}
	var err error
	if c.Network, err = NewNetwork(n); err != nil {
		return c, err
	}
	var addrs, peers, etcd []string
	for i := range n {
		a := c.Network.Addr(i).String()
		addrs = append(addrs, a)
		peers = append(peers, fmt.Sprintf("m%d=%s:%d", i, a, portPeer))
		etcd = append(etcd, fmt.Sprintf("m%d=%s:%d", i, a, portEtcd))
	}
	if c.pki, err = newPKI(filepath.Join(root, "pki"), append(addrs, c.Network.Addr(n).String())); err != nil {
		return c, err
	}
	for i, a := range addrs {
		m := &Member{Name: fmt.Sprintf("m%d", i), Index: i, station: c.Network.stations[i]}
		m.dir, m.log = filepath.Join(root, m.Name), filepath.Join(logs, m.Name+".log")
		m.env = []string{"KEELSON_FAILPOINTS=" + m.points()}
		listen := func(port int) string { return fmt.Sprintf("%s:%d", a, port) }
		m.args = []string{
			filepath.Join(bin, "apiserver"), "--name", m.Name, "--data-dir", m.data(),
			"--identity", c.pki.path("apiserver"), "--service-account-key", c.pki.path("sa.key"),
			"--listen-https", listen(portHTTPS), "--listen-grpc", listen(portGRPC), "--advertise-address", a,
			"--listen-peer", listen(portPeer), "--members", strings.Join(peers, ","),
			"--etcd-listen-peer", listen(portEtcd), "--etcd-members", strings.Join(etcd, ","),
			"--ops-address", "unix://" + m.socket(), "--log-format", "text",
		}
		c.Members = append(c.Members, m)
		if err := m.start(ctx); err != nil {
			return c, err
		}
	}
	return c, c.Whole(ctx, wholeTime)
}

// Close stops the members and removes their files and networks.
func (c *Cluster) Close() error {
	c.cancel()
	var errs []error
	for _, m := range c.Members {
		m.wg.Wait()
		errs = append(errs, unix.Unmount(m.dir, 0))
	}
	if c.Network != nil {
		c.Network.Close()
	}
	return errors.Join(append(errs, unix.Unmount(c.dir, 0))...)
}

// Whole waits until every member is ready and has its votes.
func (c *Cluster) Whole(ctx context.Context, within time.Duration) error {
	return wait.Until(ctx, within, func(ctx context.Context) error {
		for _, m := range c.Members {
			if err := m.Ready(ctx); err != nil {
				return err
			}
		}
		return nil
	})
}

// Dial returns a client of these members, with the administrator's identity.
func (c *Cluster) Dial(members ...*Member) (*client.Client, error) {
	t, err := c.pki.admin()
	if err != nil {
		return nil, err
	}
	cfg := client.Config{TLS: t, UserAgent: "fault-test"}
	for _, m := range members {
		cfg.Endpoints = append(cfg.Endpoints, fmt.Sprintf("%s:%d", c.Network.Addr(m.Index), portGRPC))
	}
	return client.Dial(cfg)
}

// https returns the addresses of the members' HTTPS listeners.
func (c *Cluster) https() (out []string) {
	for _, m := range c.Members {
		out = append(out, fmt.Sprintf("%s:%d", c.Network.Addr(m.Index), portHTTPS))
	}
	return out
}

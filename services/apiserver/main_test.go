package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.dev/proto/client"
	"keelson.dev/proto/client/clientconformance"
	"keelson.dev/services/internal/boot"
	"keelson.dev/services/internal/identity/identitytest"
)

// cluster is the files that an apiserver is started with.
type cluster struct {
	ca       *identitytest.CA
	identity string
	key      string
	dir      string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{ca: identitytest.NewCA(t), dir: t.TempDir()}
	c.identity = t.TempDir()
	c.ca.Write(t, c.identity, "kube-apiserver", "system:masters")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	c.key = filepath.Join(c.dir, "sa.key")
	if err := os.WriteFile(c.key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

// output is what a program writes while a test reads it.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

var readyLine = regexp.MustCompile(`msg=ready grpc=(\S+) https=(\S+)`)

// addresses are where an apiserver listens.
type addresses struct{ grpc, https string }

// start runs an apiserver in this process until the test ends, and returns the
// address of its gRPC port.
func (c *cluster) start(t *testing.T, args ...string) (grpcAddress string) {
	t.Helper()
	return c.startBoth(t, args...).grpc
}

// startBoth is start, and returns the addresses of both ports.
func (c *cluster) startBoth(t *testing.T, args ...string) addresses {
	t.Helper()
	all := append([]string{
		"--identity", c.identity, "--service-account-key", c.key, "--listen-grpc", "127.0.0.1:0", "--listen-https", "127.0.0.1:0",
		"--ops-address", "127.0.0.1:0", "--advertise-address", "127.0.0.1",
	}, args...)
	ctx, cancel := context.WithCancel(context.Background())
	out := &output{}
	code := make(chan int, 1)
	go func() {
		code <- boot.Execute(ctx, "apiserver", all, out, func(fs *pflag.FlagSet) boot.Run { return newOptions(fs).run })
	}()
	t.Cleanup(func() {
		cancel()
		if got := <-code; got != 0 {
			t.Errorf("exit code %d:\n%s", got, out)
		}
	})
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for {
		if m := readyLine.FindStringSubmatch(out.String()); m != nil {
			return addresses{grpc: m[1], https: m[2]}
		}
		select {
		case <-tick.C:
		case got := <-code:
			code <- got
			t.Fatalf("ended with %d:\n%s", got, out)
		case <-late:
			t.Fatalf("not ready:\n%s", out)
		}
	}
}

func (c *cluster) client(t *testing.T, address, user string, groups ...string) *client.Client {
	t.Helper()
	cl, err := client.Dial(client.Config{Endpoints: []string{address}, UserAgent: "test/1", TLS: c.ca.Source(t, user, groups...).ClientTLS("localhost")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cl.Close() })
	return cl
}

// TestConformance runs the clients' suite against whole apiservers on both
// stores.
func TestConformance(t *testing.T) {
	for name, args := range map[string]func(c *cluster) []string{
		"memory": func(*cluster) []string { return []string{"--memory"} },
		"etcd":   func(c *cluster) []string { return []string{"--data-dir", filepath.Join(c.dir, "data")} },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			address := c.start(t, args(c)...)
			clientconformance.Run(t, clientconformance.Config{
				Client: c.client(t, address, "kubernetes-admin", "system:masters"), Namespace: "default", Endpoint: address,
				Dial: func(t *testing.T, a string) *client.Client {
					return c.client(t, a, "kubernetes-admin", "system:masters")
				},
			})
		})
	}
}

// TestWhatEveryClusterHas looks at a new cluster as several users.
func TestWhatEveryClusterHas(t *testing.T) {
	c := newCluster(t)
	address := c.start(t, "--memory")
	admin := c.client(t, address, "kubernetes-admin", "system:masters")
	for _, ns := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		if _, err := client.For[*corev1.Namespace](admin).Get(t.Context(), "", ns); err != nil {
			t.Error(err)
		}
	}
	nobody := c.client(t, address, "nobody")
	_, err := client.For[*corev1.ConfigMap](nobody).Get(t.Context(), "default", "a")
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `User "nobody" cannot get resource "configmaps" in API group "" in the namespace "default"`) {
		t.Errorf("got %v", err)
	}
	node := c.client(t, address, "system:node:n", "system:nodes")
	if _, err := client.For[*corev1.Node](node).Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}); err != nil {
		t.Errorf("a node registers itself: %v", err)
	}
	if _, err := client.For[*corev1.Node](node).Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "m"}}); !apierrors.IsForbidden(err) {
		t.Errorf("a node registers another: %v", err)
	}
	svc, err := client.For[*corev1.Service](admin).Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "s", Namespace: "default"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}},
	})
	if err != nil || !strings.HasPrefix(svc.Spec.ClusterIP, "10.96.") {
		t.Errorf("service %+v, %v", svc, err)
	}
}

func TestWrongFlags(t *testing.T) {
	c := newCluster(t)
	file := filepath.Join(c.dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := func(more ...string) []string {
		return append([]string{"--identity", c.identity, "--service-account-key", c.key, "--memory", "--listen-grpc", "127.0.0.1:0", "--listen-https", "127.0.0.1:0"}, more...)
	}
	for name, test := range map[string]struct {
		args []string
		text string
	}{
		"no identity":     {[]string{"--memory"}, "--identity is required"},
		"no such dir":     {[]string{"--identity", filepath.Join(c.dir, "none"), "--memory"}, "--identity"},
		"no data":         {[]string{"--identity", c.identity, "--service-account-key", c.key}, "--data-dir is required"},
		"data is a file":  {[]string{"--identity", c.identity, "--service-account-key", c.key, "--data-dir", file}, "data-dir"},
		"no key":          {[]string{"--identity", c.identity, "--memory"}, "--service-account-key is required"},
		"no such key":     {[]string{"--identity", c.identity, "--memory", "--service-account-key", filepath.Join(c.dir, "none")}, "--service-account-key"},
		"key is no key":   {[]string{"--identity", c.identity, "--memory", "--service-account-key", file}, "--service-account-key"},
		"bad range":       {good("--service-cluster-ip-range", "10.96.0.0"), "--service-cluster-ip-range"},
		"IPv6 range":      {good("--service-cluster-ip-range", "fd00::/112"), "IPv4"},
		"bad ports":       {good("--service-node-port-range", "30000"), "--service-node-port-range"},
		"ports reversed":  {good("--service-node-port-range", "2-1"), "node ports"},
		"bad tolerations": {good("--default-not-ready-toleration-seconds", "-1"), "must not be negative"},
		"bad address":     {good("--advertise-address", "somewhere"), "--advertise-address"},
		"bad listener":    {good("--listen-grpc", "nowhere:port"), "--listen-grpc"},
		"unknown flag":    {good("--nonsense"), "nonsense"},
	} {
		t.Run(name, func(t *testing.T) {
			out := &output{}
			code := boot.Execute(t.Context(), "apiserver", test.args, out, func(fs *pflag.FlagSet) boot.Run { return newOptions(fs).run })
			lines := strings.Split(strings.TrimSpace(out.String()), "\n")
			if last := lines[len(lines)-1]; code != 2 || !strings.Contains(last, test.text) {
				t.Errorf("code %d:\n%s", code, out)
			}
		})
	}
}

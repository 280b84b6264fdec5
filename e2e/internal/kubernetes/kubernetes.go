// Package kubernetes runs Kubernetes' own control plane, without kubelets, so that a test can
// record what it answers. CI does not use it: it compares with the recorded answers.
//
// The servers listen on loopback, on free ports, and keep everything in one directory. The
// administrator is kubernetes-admin, as in a cluster of `keel up`. Pods are scheduled to the
// nodes that the test creates, and never run.
package kubernetes

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"keelson.dev/e2e/internal/wait"
)

// patience bounds how long a server takes until it is ready.
const patience = time.Minute

// token authenticates the administrator. The servers listen on loopback only, as long as a
// recording lasts.
const token = "recorder"

// ControlPlane is a running control plane.
type ControlPlane struct {
	dir     string
	running []*exec.Cmd // in the order of their start
}

// Start starts the programs of the directory programs, which scripts/kubernetes.sh builds, with
// their data and logs in dir, and writes dir/kubeconfig. The caller stops what is returned,
// with an error too.
func Start(ctx context.Context, programs, dir string) (*ControlPlane, error) {
	c := &ControlPlane{dir: dir}
	ports, err := freePorts(3)
	if err != nil {
		return c, err
	}
	key := filepath.Join(dir, "sa.key")
	if err := writeKey(key); err != nil {
		return c, err
	}
	tokens := filepath.Join(dir, "tokens.csv")
	if err := os.WriteFile(tokens, []byte(token+`,kubernetes-admin,,"system:masters"`+"\n"), 0o600); err != nil {
		return c, err
	}
	store, peer, api := "http://"+ports[0], "http://"+ports[1], "https://"+ports[2]
	if err := c.start(programs, "etcd", "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync", "--log-level", "warn",
		"--listen-client-urls", store, "--advertise-client-urls", store, "--listen-peer-urls", peer,
		"--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer); err != nil {
		return c, err
	}
	if err := ready(ctx, store+"/health"); err != nil {
		return c, fmt.Errorf("etcd: %w", err)
	}
	_, port, _ := net.SplitHostPort(ports[2])
	if err := c.start(programs, "kube-apiserver", "--etcd-servers", store, "--bind-address", "127.0.0.1", "--secure-port", port,
		"--advertise-address", "192.0.2.1", // must not be a loopback address; nothing connects to it
		"--cert-dir", filepath.Join(dir, "certs"), "--token-auth-file", tokens, "--authorization-mode", "Node,RBAC",
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", key,
		"--service-account-signing-key-file", key, "--service-cluster-ip-range", "10.96.0.0/16"); err != nil {
		return c, err
	}
	if err := ready(ctx, api+"/readyz"); err != nil {
		return c, fmt.Errorf("kube-apiserver: %w", err)
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := writeKubeconfig(kubeconfig, api); err != nil {
		return c, err
	}
	// Nodes without kubelets must not become unreachable.
	if err := c.start(programs, "kube-controller-manager", "--kubeconfig", kubeconfig, "--leader-elect=false", "--secure-port", "0",
		"--service-account-private-key-file", key, "--root-ca-file", filepath.Join(dir, "certs", "apiserver.crt"),
		"--use-service-account-credentials=false", "--controllers", "*,-node-lifecycle-controller,-taint-eviction-controller"); err != nil {
		return c, err
	}
	return c, c.start(programs, "kube-scheduler", "--kubeconfig", kubeconfig, "--leader-elect=false", "--secure-port", "0")
}

// Stop ends the servers and removes their directory.
func (c *ControlPlane) Stop() error {
	for i := len(c.running) - 1; i >= 0; i-- {
		cmd := c.running[i]
		_ = cmd.Process.Signal(syscall.SIGKILL) // the data is not kept
		_ = cmd.Wait()
	}
	return os.RemoveAll(c.dir)
}

func (c *ControlPlane) start(programs, name string, args ...string) error {
	log, err := os.Create(filepath.Join(c.dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(programs, name), args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: scripts/kubernetes.sh builds it", err)
	}
	c.running = append(c.running, cmd)
	return nil
}

// ready waits until a server answers with 200. The certificate of kube-apiserver is one that
// it makes for itself.
func ready(ctx context.Context, url string) error {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	return wait.Until(ctx, patience, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return wait.Stop(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

func writeKubeconfig(path, api string) error {
	config := clientcmdapi.NewConfig()
	config.Clusters["kubernetes"] = &clientcmdapi.Cluster{Server: api, InsecureSkipTLSVerify: true}
	config.AuthInfos["kubernetes-admin"] = &clientcmdapi.AuthInfo{Token: token}
	config.Contexts["kubernetes"] = &clientcmdapi.Context{Cluster: "kubernetes", AuthInfo: "kubernetes-admin"}
	config.CurrentContext = "kubernetes"
	return clientcmd.WriteToFile(*config, path)
}

// writeKey writes a new key that signs the tokens of service accounts.
func writeKey(path string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// freePorts returns loopback addresses that nothing listened on a moment ago.
func freePorts(n int) ([]string, error) {
	var list []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		list = append(list, l.Addr().String())
	}
	return list, nil
}

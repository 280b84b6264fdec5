package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// system is a control plane that can be measured: the programs of a directory.
type system interface {
	// check reports what is missing.
	check() error
	// serve starts the servers that answer requests, with their data in b.dir/data, and sets
	// b.https and, where there is one, b.grpc.
	serve(ctx context.Context, b *bench) ([]*process, error)
	// cluster starts a whole control plane, with its data in b.dir/cluster, for nodes that
	// run no containers.
	cluster(ctx context.Context, b *bench, nodes int) (*cluster, error)
}

// cluster is a running control plane.
type cluster struct {
	// kubeconfig is the path of the administrator's kubeconfig.
	kubeconfig string
	// pids are the processes of the control plane, without nodes.
	pids []int
	// simulated is true if the nodes renew their leases and report their pods' status.
	simulated bool
	stop      func() error
}

// keelsonDir is a directory of Keelson's programs.
type keelsonDir string

func (k keelsonDir) program(name string) string { return filepath.Join(string(k), name) }

func (k keelsonDir) check() error {
	if _, err := os.Stat(k.program("apiserver")); err != nil {
		return fmt.Errorf("%w: run `make build`", err)
	}
	return nil
}

func (k keelsonDir) serve(ctx context.Context, b *bench) ([]*process, error) {
	ports, err := addresses(2)
	if err != nil {
		return nil, err
	}
	b.https, b.grpc = ports[0], ports[1]
	config, err := b.tls()
	if err != nil {
		return nil, err
	}
	p, err := spawn(b.dir, k.program("apiserver"),
		"--identity", filepath.Join(b.dir, "pki", "apiserver"),
		"--data-dir", filepath.Join(b.dir, "data"),
		"--listen-https", b.https, "--listen-grpc", b.grpc, "--advertise-address", "127.0.0.1",
		"--service-account-key", filepath.Join(b.dir, "pki", "sa.key"),
		"--ops-address", "unix://"+filepath.Join(b.dir, "ops.sock"))
	if err != nil {
		return nil, err
	}
	return []*process{p}, p.ready(ctx, "https://"+b.https+"/readyz", config)
}

func (k keelsonDir) cluster(ctx context.Context, b *bench, nodes int) (*cluster, error) {
	home := filepath.Join(b.dir, "cluster")
	keel := func(ctx context.Context, args ...string) error {
		cmd := exec.CommandContext(ctx, k.program("keel"), append(args, "--home", home)...)
		cmd.Stderr = os.Stderr
		return cmd.Run()
	}
	c := &cluster{
		kubeconfig: filepath.Join(home, "kubeconfig"), simulated: true,
		stop: func() error { return keel(context.WithoutCancel(ctx), "delete") },
	}
	if err := keel(ctx, "up", "--nodes", "0", "--simulated-nodes", fmt.Sprint(nodes)); err != nil {
		return c, err
	}
	var err error
	c.pids, err = started(home, "apiserver", "scheduler", "controller-manager", "cloud-controller")
	if err == nil && len(c.pids) < 3 {
		err = fmt.Errorf("only %d processes of the control plane were found", len(c.pids))
	}
	return c, err
}

// kubernetesDir is a directory of Kubernetes' programs and etcd.
type kubernetesDir string

func (k kubernetesDir) program(name string) string { return filepath.Join(string(k), name) }

func (k kubernetesDir) check() error {
	for _, name := range []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"} {
		if _, err := os.Stat(k.program(name)); err != nil {
			return fmt.Errorf("%w: scripts/kubernetes.sh builds it", err)
		}
	}
	return nil
}

// serve starts etcd and kube-apiserver. etcd listens without TLS on the loopback interface,
// which costs both less than a cluster's etcd.
func (k kubernetesDir) serve(ctx context.Context, b *bench) ([]*process, error) {
	return k.servers(ctx, b, filepath.Join(b.dir, "data"))
}

func (k kubernetesDir) servers(ctx context.Context, b *bench, data string) ([]*process, error) {
	ports, err := addresses(3)
	if err != nil {
		return nil, err
	}
	store, peer := "http://"+ports[0], "http://"+ports[1]
	b.https, b.grpc = ports[2], ""
	config, err := b.tls()
	if err != nil {
		return nil, err
	}
	etcd, err := spawn(b.dir, k.program("etcd"), "--name", "bench", "--data-dir", data, "--log-level", "warn",
		"--listen-client-urls", store, "--advertise-client-urls", store,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "bench="+peer)
	if err != nil {
		return nil, err
	}
	running := []*process{etcd}
	if err := etcd.ready(ctx, store+"/health", nil); err != nil {
		return running, err
	}
	_, port, _ := strings.Cut(b.https, ":")
	keys := filepath.Join(b.dir, "pki", "sa.key")
	own := filepath.Join(b.dir, "pki", "apiserver")
	api, err := spawn(b.dir, k.program("kube-apiserver"), "--etcd-servers", store,
		"--bind-address", "127.0.0.1", "--secure-port", port,
		"--advertise-address", "192.0.2.1", // it must not be a loopback address, and is never used
		"--client-ca-file", filepath.Join(own, "ca.crt"),
		"--tls-cert-file", filepath.Join(own, "tls.crt"), "--tls-private-key-file", filepath.Join(own, "tls.key"),
		"--service-account-issuer", "https://bench", "--service-account-key-file", keys, "--service-account-signing-key-file", keys,
		"--service-cluster-ip-range", "10.96.0.0/16", "--authorization-mode", "Node,RBAC", "--allow-privileged")
	if err != nil {
		return running, err
	}
	return append(running, api), api.ready(ctx, "https://"+b.https+"/readyz", config)
}

// cluster starts etcd and the three programs. There are no nodes behind the Node objects, so
// nothing renews leases or reports the status of pods, and the control plane has that much
// less to do. The controller of nodes is off, since it would evict the pods of silent nodes.
func (k kubernetesDir) cluster(ctx context.Context, b *bench, _ int) (c *cluster, err error) {
	data := filepath.Join(b.dir, "cluster")
	var running []*process
	c = &cluster{kubeconfig: filepath.Join(b.dir, "kubeconfig"), stop: func() error {
		for i := len(running) - 1; i >= 0; i-- {
			running[i].stop()
		}
		return os.RemoveAll(data)
	}}
	running, err = k.servers(ctx, b, data)
	if err != nil {
		return c, err
	}
	if err := b.writeKubeconfig(c.kubeconfig); err != nil {
		return c, err
	}
	// The clients' own rate limits would decide otherwise.
	common := []string{"--kubeconfig", c.kubeconfig, "--leader-elect=false", "--secure-port", "0", "--kube-api-qps", "10000", "--kube-api-burst", "20000"}
	manager, err := spawn(b.dir, k.program("kube-controller-manager"), append(common,
		"--service-account-private-key-file", filepath.Join(b.dir, "pki", "sa.key"),
		"--controllers", "*,-node-lifecycle-controller,-taint-eviction-controller")...)
	if err != nil {
		return c, err
	}
	running = append(running, manager)
	scheduler, err := spawn(b.dir, k.program("kube-scheduler"), common...)
	if err != nil {
		return c, err
	}
	running = append(running, scheduler)
	for _, p := range running {
		c.pids = append(c.pids, p.cmd.Process.Pid)
	}
	return c, nil
}

// writeKubeconfig writes the administrator's kubeconfig for the server that is running.
func (b *bench) writeKubeconfig(path string) error {
	dir := filepath.Join(b.dir, "pki", "admin")
	config := clientcmdapi.NewConfig()
	config.Clusters["bench"] = &clientcmdapi.Cluster{Server: "https://" + b.https, CertificateAuthority: filepath.Join(dir, "ca.crt")}
	config.AuthInfos["bench"] = &clientcmdapi.AuthInfo{ClientCertificate: filepath.Join(dir, "tls.crt"), ClientKey: filepath.Join(dir, "tls.key")}
	config.Contexts["bench"] = &clientcmdapi.Context{Cluster: "bench", AuthInfo: "bench"}
	config.CurrentContext = "bench"
	return clientcmd.WriteToFile(*config, path)
}

// addresses returns n free loopback addresses.
func addresses(n int) ([]string, error) {
	out := make([]string, n)
	for i := range out {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		// All listeners stay open until the last address is known, so that all differ.
		defer l.Close()
		out[i] = l.Addr().String()
	}
	return out, nil
}
